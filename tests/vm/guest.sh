# Runs as root in the virtual machine, once that has booted: guest.sh TAG DIRECTORY PYTHON.
# The outer machine's files are the root here, read-only and without a cache, which makes Python crawl.
# They are mounted again with one, become the root of a mount namespace, and there pytest runs the
# tests that DIRECTORY/tests lists. Messages go to standard output, all else to standard error.
set -eu
if [ "${KILO_VM_STAGE-}" = "" ]; then
  exec env KILO_VM_STAGE=root unshare --mount --propagation private sh "$0" "$@"
fi
exec 3>&1 1>&2
repository=${0%/tests/vm/guest.sh}
mkdir -p /run/root /run/job
mount -t 9p -o "ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000" "$1" /run/root
cp "$2/tests" /run/job/
cd /run/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mkdir /run/repository
mount --bind "./$repository" /run/repository
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/lock run/outside
if [ ! -e "./$repository" ]; then # a clone in /tmp or /run
  mkdir -p "./$repository"
  mount --bind /run/repository "./$repository"
fi
cp -r /run/job run/
pivot_root . run/outside
cd "$repository"
umount -l /run/outside
mount -t tmpfs -o mode=755 tmpfs /var/lib/kilo 2>/dev/null || true
modprobe -a tun veth bridge wireguard overlay || echo "modprobe failed"
ip link set lo up
# The kernel changes its own code when the first netfilter hook or WireGuard socket comes and when the
# last one goes, and an emulated processor that runs there at that moment may hang. So some are always here.
for hook in prerouting input forward output postrouting; do
  echo "add chain inet kilo-vm $hook { type filter hook $hook priority 0; }"
done | { echo "add table inet kilo-vm" && cat; } | nft -f -
ip link add kilo-vm type wireguard
ip link set kilo-vm up
export KILO_VM=1 HOME=/tmp TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
exec "$3" -m pytest -p pytest_timeout -p tests.vm.relay -p no:cacheprovider -v --tb=short --color=no @/run/job/tests
