# Against the host's files, processes and kernel. argv: a folder of the host
# outside the workspace with the file "canary" in it.
outside = sys.argv[1]
canary = outside + '/canary'
libc = ctypes.CDLL(None, use_errno=True)
ROOT = os.getuid() == 0

def call(nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(nr, *args)
    if r < 0: raise OSError(ctypes.get_errno(), 'syscall')
    return r

def read(p): return open(p, 'rb').read(64)
def write(p): open(p, 'ab').write(b'x'); return True

control('FS-01', 'write in the workspace', lambda: write('inside'))
control('FS-02', 'read in the workspace', lambda: read('inside'))
up = '../' * 20
for p in [canary, up + canary[1:], '//' + canary, canary.replace('/', '/./'), os.path.expanduser('~') + '/' + up + canary[1:]]:
    attack('FS-01', 'write ' + p, lambda: write(p))
    attack('FS-02', 'read ' + p, lambda: read(p))
os.symlink(canary, 'link')
attack('SL-01', 'read through a link', lambda: read('link'))
attack('SL-02', 'write through a link', lambda: write('link'))
attack('SL-07', 'hard link to a host file', lambda: os.link(canary, 'hard'))
for p in ['/proc/self/root', '/proc/1/root', '/proc/self/cwd/' + up, '/proc/1/cwd', '/proc/thread-self/root']:
    attack('PR-03', p, lambda: read(p + canary))
for what in ['environ', 'mem', 'maps', 'auxv', 'fd/3', 'exe', 'ns/mnt', 'map_files', 'stack']:
    attack('PR-01', 'pid 1 ' + what, lambda: os.listdir('/proc/1/' + what) if what == 'map_files' else read('/proc/1/' + what))
control('PR-01', 'own environ', lambda: len(read('/proc/self/environ')) > 0)
attack('PR-02', 'ptrace pid 1', lambda: call(101, 16, 1, 0, 0))
pid1 = os.pidfd_open(1)
for fd in range(8): attack('PR-02', 'pidfd_getfd %d' % fd, lambda: call(438, pid1, fd, 0))
attack('PR-04', 'more descriptors than 0 to 2', lambda: [fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and int(fd) != pid1 and os.path.lexists('/proc/self/fd/' + fd)] or False)
for p in ['/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sys/kernel/hostname', '/proc/sys/vm/drop_caches', '/proc/sysrq-trigger', '/proc/sys/fs/binfmt_misc/register',
          '/sys/kernel/uevent_helper', '/sys/power/state', '/sys/fs/cgroup/release_agent', '/sys/devices/system/cpu/cpu1/online', '/proc/irq/default_smp_affinity', '/proc/mtrr', '/proc/dynamic_debug/control']:
    attack('PR-06', 'open ' + p, lambda: os.close(os.open(p, os.O_WRONLY)) or True)
for p in ['/dev/null', '/dev/zero', '/dev/full', '/dev/random', '/dev/urandom', '/dev/tty', '/etc/passwd', '/usr/bin/env', '/run/bulkhead/bulkhead']:
    attack('PR-06', 'times of ' + p, lambda: os.utime(p, (1, 1)) or True)
    attack('PR-06', 'mode of ' + p, lambda: os.chmod(p, stat.S_IMODE(os.stat(p).st_mode)) or True)
control('PR-06', 'times of an own file', lambda: os.utime('inside', (1, 1)))
for p in ['/dev/mem', '/dev/kmsg', '/dev/fuse', '/dev/net/tun', '/dev/vda', '/dev/sda', '/dev/kvm', '/dev/loop-control', '/proc/kcore', '/proc/kmsg']:
    attack('FS-07', 'open ' + p, lambda: os.close(os.open(p, os.O_RDONLY)) or True)
for where in ['node', '/tmp/node', '/dev/shm/node']:
    attack('FS-07', 'mknod ' + where, lambda: os.mknod(where, stat.S_IFCHR | 0o666, os.makedev(1, 1)) or read(where))
# A device 0:0 needs no capability, and no mount refuses it: only Landlock does.
attack('FS-07', 'mknod of a whiteout', lambda: os.mknod('whiteout', stat.S_IFCHR | 0o666, 0) or True)
new = {'mount': 165, 'umount2': 166, 'pivot_root': 155, 'chroot': 161, 'open_tree': 428, 'move_mount': 429, 'fsopen': 430, 'fsmount': 432, 'fspick': 433, 'mount_setattr': 442, 'open_tree_attr': 467}
for n, nr in new.items(): attack('FS-11', n, lambda: call(nr, b'/', b'/', 0, 0, 0))
for n, args in {'unshare user': (272, 0x10000000), 'unshare mount': (272, 0x20000), 'setns': (308, pid1, 0), 'clone3': (435, 0, 0)}.items(): attack('KRN-02', n, lambda: call(*args))
for n in (425, 426, 427): attack('KRN-01', 'io_uring %d' % n, lambda: call(n, 1, 0, 0, 0, 0, 0))
for n, nr in {'keyctl': 250, 'add_key': 248, 'request_key': 249}.items(): attack('KRN-04', n, lambda: call(nr, 0, -3, 0, 0, 0))
for n, nr in {'bpf': 321, 'perf_event_open': 298, 'userfaultfd': 323, 'kexec_load': 246, 'kexec_file_load': 320, 'init_module': 175, 'finit_module': 313, 'delete_module': 176, 'open_by_handle_at': 304, 'acct': 163, 'swapon': 167, 'settimeofday': 164, 'syslog': 103}.items():
    attack('KRN-05', n, lambda: call(nr, 0, 0, 0, 0, 0, 0))
for family in range(46):
    for typ in (1, 2, 3, 5, 10):
        if (family in (1, 2, 10) and typ in (1, 2)) or (family == 1 and typ == 5) or (family == 16 and typ in (2, 3)): continue
        attack('IPC-15', 'socket %d %d' % (family, typ), lambda: socket.socket(family, typ, 0))
for family, typ, proto in [(2, 3, 1), (2, 3, 255), (17, 3, 768), (2, 1, 132), (2, 1, 256), (2, 2, 136), (16, 3, 9), (16, 3, 12), (16, 3, 15), (16, 3, 4)]:
    attack('KRN-09', 'socket %d %d %d' % (family, typ, proto), lambda: socket.socket(family, typ, proto))
control('KRN-09', 'a stream socket', lambda: socket.socket(2, 1, 6))
import fcntl, pty
_, tty = pty.openpty()
for n, c in {'TIOCSTI': 0x5412, 'TIOCLINUX': 0x541c, 'TIOCSETD': 0x5423, 'TIOCSTI with a high bit': 0x100005412}.items():
    attack('TTY-01', n, lambda: call(16, tty, ctypes.c_long(c), b'x\0\0\0'))
for sig in (1, 2, 3, 4, 6, 8, 9, 11, 15, 19, 31): attack('CTL-03', 'signal %d to pid 1' % sig, lambda: os.kill(1, sig) or True)
attack('CTL-03', 'limits of pid 1', lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))
control('CTL-03', 'own limits', lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)))
attack('KRN-07', 'no capability is left', lambda: [l for l in open('/proc/self/status') if l.startswith('Cap') and int(l.split()[1], 16)] or False)
attack('KRN-07', 'no_new_privs is off', lambda: 'NoNewPrivs:\t1' not in open('/proc/self/status').read())
attack('IPC-09', 'abstract sockets of the host', lambda: [l for l in open('/proc/net/unix') if '@' in l] or False)
for n, nr in {'x32': 0x40000000 | 39}.items():
    pid = os.fork()
    if pid == 0:
        call(nr); os._exit(0)
    attack('KRN-05', 'a call of ' + n, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0)
