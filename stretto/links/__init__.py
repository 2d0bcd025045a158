"""Transports: streams (TCP, TLS, Unix), shared memory, torch.distributed; and what proves who is at the other end."""
