"""One agent of ``stretto train``: ``python -m stretto.workloads.job JOB``, with the job as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch

from stretto import workloads
from stretto.errors import Diverged
from stretto.launch.join import join
from stretto.workloads.folder import News, leave_outcome
from stretto.workloads.result import Job
from stretto.workloads.train import train


def run(job: Job) -> None:
    """Join the others, train, and leave the outcome in the job's folder."""
    torch.set_num_threads(job.threads)
    folder = Path(job.folder)
    news = News(folder)
    with join(link=job.link) as agent:
        outcome = train(
            agent,
            workloads.get(job.workload),
            job.model,
            strategy=job.strategy,
            epochs=job.epochs,
            seconds=job.seconds,
            target=job.target,
            tests=job.tests,
            batch_size=job.batch_size,
            seed=job.seed,
            data=Path(job.data) if job.data else None,
            progress=news.tell,
        )
        leave_outcome(folder, outcome)
    news.close()


if __name__ == "__main__":
    try:
        run(msgspec.json.decode(sys.argv[1], type=Job))
    except Diverged as e:  # of the rates that were asked for, not of this script
        print(f"stretto: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
