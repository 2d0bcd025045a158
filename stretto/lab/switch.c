// The switch of a network laboratory: a process that holds a network namespace for every host, each with a TUN device
// that ends here, and carries packets between them. It needs nothing of the kernel but TUN; tc's netem may be missing.
//
// Theory of operation. The namespaces have no names: they live as descriptors of this process (NAMESPACES + host), so
// nothing can clash with another network on the machine, and when the switch ends nothing is left. It ends at SIGTERM, at
// the word "stop", or with its owner however that went (a pidfd), and takes along every process that runs on its hosts.
//
// Model. A host has a full-duplex access link: `rate` bytes/s each way, `delay` seconds one way between two such hosts
// (two that differ: the mean of theirs), `loss` of a packet, and a drop-tail queue of `queue` bytes on its way down. Its
// own packets wait in its kernel, as before a network card. A host, or the way between two, may be cut: silence in both
// directions and no reset, as with a pulled cable. Where nothing is lost and the rate is high, segments travel up to 16 KiB
// at a time (TSO), timed as their wire packets; else one by one.
//
//   switch serve NAME HOSTS SUBNET OWNER CONGESTION   host i is SUBNET.(i+1); OWNER is a pid, or 0; CONGESTION may be ""
//   switch enter PID HOST COMMAND...                  run COMMAND on a host of the switch PID
//
// Control datagrams at the abstract address "stretto-lab-NAME", of our own user or root alone; -1 is every host:
//   set HOST RATE DELAY LOSS QUEUE (negative: as it was) · cut HOST OTHER YES · stats · about · stop
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HOSTS = 64, SLOTS = 16384, FRAME = 70000, ETHERNET = 14, MTU = 1500, LARGEST = 16384, NAMESPACES = 200 };
static const double COARSE = 50e6 / 8, CREDIT = 0.0005, IDLE = 0.5;

struct packet { double due; int length; unsigned char *bytes; };
struct host {
    int tun, cut, coarse;
    dev_t device;                          // of the namespace, with inode: to find who runs in it
    ino_t inode;
    double rate, delay, loss, queue;       // bytes/s, s, probability, bytes
    double up_free, down_free;             // when this direction of the access link is next idle
    struct packet *slots;
    unsigned head, tail;
    long long sent, received, dropped, lost;
};
static struct host hosts[MAX_HOSTS];
static char severed[MAX_HOSTS][MAX_HOSTS];
static int count;
static const char *subnet;
static volatile sig_atomic_t stopping;

static void on_stop(int number) { (void)number; stopping = 1; }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static double earlier(double a, double b) { return a < b ? a : b; }
static double later(double a, double b) { return a > b ? a : b; }
static void die(const char *what) { perror(what); exit(1); }

// Packets that are lost or slow must be lost and timed one by one; large segments spare the processor elsewhere.
static void offload(void) {
    int lossy = 0;
    for (int i = 0; i < count; i++) lossy |= hosts[i].loss > 0;
    for (int i = 0; i < count; i++) {
        int coarse = !lossy && hosts[i].rate >= COARSE;
        if (coarse == hosts[i].coarse) continue;
        if (ioctl(hosts[i].tun, TUNSETOFFLOAD, TUN_F_CSUM | (coarse ? TUN_F_TSO4 : 0))) die("TUNSETOFFLOAD");
        hosts[i].coarse = coarse;
    }
}

static void bring_up(const char *name, const char *address) {
    struct ifreq request = {0};
    struct sockaddr_in *in = (void *)&request.ifr_addr;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (address) {
        request.ifr_mtu = MTU;
        if (ioctl(s, SIOCSIFMTU, &request)) die("mtu");
        request.ifr_qlen = 1000;
        if (ioctl(s, SIOCSIFTXQLEN, &request)) die("txqueuelen");
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        if (ioctl(s, SIOCSIFADDR, &request)) die("address");
        inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
        if (ioctl(s, SIOCSIFNETMASK, &request)) die("netmask");
    }
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &request)) die("interface up");
    close(s);
}

static void limit_segments(const char *name) {
    struct { struct nlmsghdr head; struct ifinfomsg info; struct rtattr attribute; uint32_t most; } m = {
        .head = {sizeof m, RTM_NEWLINK, NLM_F_REQUEST, 0, 0},
        .info = {.ifi_family = AF_UNSPEC, .ifi_index = (int)if_nametoindex(name)},
        .attribute = {RTA_LENGTH(sizeof m.most), IFLA_GSO_MAX_SIZE},
        .most = LARGEST,
    };
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (send(s, &m, sizeof m, 0) < 0) die("gso_max_size");
    close(s);
}

static void pin(const char *congestion) {
    if (!*congestion) return;
    int f = open("/proc/sys/net/ipv4/tcp_congestion_control", O_WRONLY);
    if (f < 0 || write(f, congestion, strlen(congestion)) < 0) die(congestion);
    close(f);
}

static void plug(int i, const char *congestion) {
    struct host *h = &hosts[i];
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    int header = sizeof(struct virtio_net_hdr);
    char address[32];
    struct stat about;
    if (unshare(CLONE_NEWNET)) die("unshare");
    int ns = open("/proc/self/ns/net", O_RDONLY);
    if (ns < 0 || dup3(ns, NAMESPACES + i, O_CLOEXEC) < 0 || fstat(ns, &about)) die("namespace");
    close(ns);
    h->device = about.st_dev, h->inode = about.st_ino;
    h->tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    strcpy(request.ifr_name, "tun0");
    if (h->tun < 0) die("/dev/net/tun");
    if (ioctl(h->tun, TUNSETIFF, &request) || ioctl(h->tun, TUNSETVNETHDRSZ, &header)) die("tun0");
    snprintf(address, sizeof address, "%s.%d", subnet, i + 1);
    bring_up("tun0", address), bring_up("lo", NULL), limit_segments("tun0"), pin(congestion);
    h->slots = malloc(sizeof(struct packet) * SLOTS);
    h->rate = 125e6, h->delay = 0.0001, h->queue = 1 << 20, h->coarse = -1;
}

static void cut(int host, int other, char yes) {
    for (int i = 0; i < count; i++) {
        if (host >= 0 && i != host) continue;
        if (other < 0) hosts[i].cut = yes;
        else if (other < count) severed[i][other] = severed[other][i] = yes;
    }
}

static void set(int who, double rate, double delay, double loss, double queue) {
    for (int i = 0; i < count; i++) {
        struct host *h = &hosts[i];
        if (who >= 0 && i != who) continue;
        if (rate > 0) h->rate = rate;
        if (delay >= 0) h->delay = delay;
        if (loss >= 0) h->loss = loss;
        if (queue >= 0) h->queue = queue;
    }
    offload();
}

static size_t answer_to(const char *text, char *answer) {
    int who, other, yes;
    double rate, delay, loss, queue;
    size_t used = 0;
    if (sscanf(text, "set %d %lf %lf %lf %lf", &who, &rate, &delay, &loss, &queue) == 5) set(who, rate, delay, loss, queue);
    else if (sscanf(text, "cut %d %d %d", &who, &other, &yes) == 3) cut(who, other, (char)yes);
    else if (!strcmp(text, "stop")) stopping = 1;
    else if (!strcmp(text, "about")) return (size_t)sprintf(answer, "%d %d %s\n", (int)getpid(), count, subnet);
    else if (!strcmp(text, "stats"))
        for (int i = 0; i < count; i++)
            used += (size_t)sprintf(answer + used, "%lld %lld %lld %lld\n", hosts[i].sent, hosts[i].received, hosts[i].dropped, hosts[i].lost);
    else return (size_t)sprintf(answer, "unknown\n");
    return used ? used : (size_t)sprintf(answer, "ok\n");
}

static void obey(int control) {
    char text[256], answer[MAX_HOSTS * 96];
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(struct ucred))]; } extra;
    struct sockaddr_un from;
    struct iovec part = {text, sizeof text - 1};
    for (;;) {
        struct msghdr m = {&from, sizeof from, &part, 1, &extra, sizeof extra, 0};
        ssize_t n = recvmsg(control, &m, 0);
        if (n < 0) return;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        struct ucred who = {.uid = (uid_t)-1};
        if (c && c->cmsg_type == SCM_CREDENTIALS) memcpy(&who, CMSG_DATA(c), sizeof who);
        if (who.uid != 0 && who.uid != getuid()) continue;
        text[n] = 0;
        sendto(control, answer, answer_to(text, answer), 0, (void *)&from, m.msg_namelen);
    }
}

// Take one packet off host i's uplink and put it on its receiver's downlink queue. 0 if there was none.
static int carry(int i, double t, double *next) {
    static unsigned char frame[FRAME];
    struct host *a = &hosts[i];
    int length = (int)read(a->tun, frame, FRAME);
    struct virtio_net_hdr *meta = (void *)frame;
    unsigned char *ip = frame + sizeof *meta;
    int bytes = length - (int)sizeof *meta, segments = 1, header = meta->hdr_len ? meta->hdr_len : 52;
    if (length <= 0) return 0;
    if (bytes < 20 || ip[0] >> 4 != 4) return 1;
    int j = ip[19] - 1;
    if (memcmp(ip + 12, ip + 16, 3) || j < 0 || j >= count) return 1;
    struct host *b = &hosts[j];
    if (meta->gso_type != VIRTIO_NET_HDR_GSO_NONE && meta->gso_size) segments = (bytes - header + meta->gso_size - 1) / meta->gso_size;
    if (segments < 1) segments = 1;
    double wire = bytes + (segments - 1) * header + segments * ETHERNET;
    a->up_free = later(a->up_free, t - CREDIT) + wire / a->rate;     // a little credit, so that waking late costs no rate
    a->sent += bytes;
    *next = earlier(*next, a->up_free);
    if (a->cut || b->cut || severed[i][j] || drand48() > (1 - a->loss) * (1 - b->loss)) { a->lost++; return 1; }
    double arrives = a->up_free + (a->delay + b->delay) / 2, due = later(arrives, b->down_free);
    if ((due - arrives) * b->rate > b->queue || b->tail - b->head >= SLOTS - 1) { b->dropped++; return 1; }
    unsigned char *kept = malloc((size_t)length);
    if (!kept) { b->dropped++; return 1; }
    memcpy(kept, frame, (size_t)length);
    b->slots[b->tail++ % SLOTS] = (struct packet){due, length, kept};
    b->down_free = due + wire / b->rate;
    *next = earlier(*next, due);
    return 1;
}

// Hand host j whatever is due. Packets under way when the cable was pulled are gone too.
static int deliver(struct host *h, double t, double *next) {
    int busy = 0;
    for (; h->head != h->tail; h->head++, busy = 1) {
        struct packet *p = &h->slots[h->head % SLOTS];
        if (p->due > t) { *next = earlier(*next, p->due); break; }
        if (h->cut) h->lost++;
        else if (write(h->tun, p->bytes, (size_t)p->length) > 0) h->received += p->length - (int)sizeof(struct virtio_net_hdr);
        free(p->bytes);
    }
    return busy;
}

static void run(int control, int owner) {
    struct pollfd waits[MAX_HOSTS + 2];
    while (!stopping) {
        double t = now(), next = t + IDLE;
        int busy = 0;
        for (int i = 0; i < count; i++) busy |= deliver(&hosts[i], t, &next);
        for (int i = 0; i < count; i++) {
            waits[i] = (struct pollfd){.fd = hosts[i].tun};
            if (hosts[i].up_free > t) next = earlier(next, hosts[i].up_free);
            else if (carry(i, t, &next)) busy = 1;
            else waits[i].events = POLLIN;
        }
        waits[count] = (struct pollfd){.fd = control, .events = POLLIN};
        waits[count + 1] = (struct pollfd){.fd = owner, .events = POLLIN};
        double pause = busy ? 0 : later(0, next - now());
        struct timespec timeout = {(time_t)pause, (long)((pause - (double)(time_t)pause) * 1e9)};
        if (busy || ppoll(waits, (nfds_t)count + 2, &timeout, NULL) <= 0) { if (busy) obey(control); continue; }
        if (waits[count].revents) obey(control);
        if (waits[count + 1].revents) return;
    }
}

// Kill whoever runs on a host. Returns how many were found.
static int sweep(void) {
    int found = 0;
    DIR *all = opendir("/proc");
    for (struct dirent *e; all && (e = readdir(all));) {
        char path[300];
        struct stat about;
        snprintf(path, sizeof path, "/proc/%s/ns/net", e->d_name);
        if (e->d_name[0] < '1' || e->d_name[0] > '9' || stat(path, &about)) continue;
        for (int i = 0; i < count; i++)
            if (about.st_ino == hosts[i].inode && about.st_dev == hosts[i].device) found += !kill(atoi(e->d_name), SIGKILL);
    }
    if (all) closedir(all);
    return found;
}

static int listen_at(const char *name) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int yes = 1, length = snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "stretto-lab-%s", name);
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(s, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes);
    if (bind(s, (void *)&at, (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)length)) die("name");
    return s;
}

static int serve(char **given) {
    count = atoi(given[1]), subnet = given[2];
    int owner = -1, pid = atoi(given[3]);
    if (count < 2 || count > MAX_HOSTS) { fprintf(stderr, "%d hosts: 2 to %d can be had\n", count, MAX_HOSTS); return 2; }
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGTERM, on_stop), signal(SIGINT, on_stop);
    srand48(1);
    if (pid && ((owner = (int)syscall(SYS_pidfd_open, pid, 0)) < 0 || getppid() != pid)) return 1;
    int control = listen_at(given[0]), home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < count; i++) plug(i, given[4]);
    if (setns(home, CLONE_NEWNET)) die("setns");
    offload();
    struct sched_param priority = {.sched_priority = 10};
    sched_setscheduler(0, SCHED_FIFO, &priority);       // where it is allowed: packets should not wait for programs
    printf("ready\n"), fclose(stdout);
    run(control, owner);
    for (int tries = 0; tries < 200 && sweep(); tries++) usleep(5000);
    return 0;
}

static int enter(char **given) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/fd/%d", given[0], NAMESPACES + atoi(given[1]));
    int ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) || access(path, F_OK)) { fprintf(stderr, "stretto: the laboratory is gone\n"); return 3; }
    execvp(given[2], given + 2);
    fprintf(stderr, "stretto: cannot run %s: %s\n", given[2], strerror(errno));
    return 127;
}

int main(int argc, char **argv) {
    if (argc == 7 && !strcmp(argv[1], "serve")) return serve(argv + 2);
    if (argc >= 5 && !strcmp(argv[1], "enter")) return enter(argv + 2);
    fprintf(stderr, "usage: switch serve NAME HOSTS SUBNET OWNER CONGESTION | switch enter PID HOST COMMAND...\n");
    return 2;
}
