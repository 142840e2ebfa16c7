"""How much main memory a process may still take."""

from __future__ import annotations

from pathlib import Path


def available_bytes(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Memory that can be taken without swapping, within the limits of the containers around us.

    `None` where the system does not say (it is no Linux).
    """
    found = [_system_available(proc), _cgroup_available(proc, cgroups)]
    known = [size_bytes for size_bytes in found if size_bytes is not None]
    return min(known) if known else None


def _system_available(proc: Path) -> int | None:
    for line in _read(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_available(proc: Path, cgroups: Path) -> int | None:
    """The least that any group from our own up to the root leaves us."""
    left = []
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = cgroups / "memory" if controllers else cgroups
        folder = mount / place.strip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(mount):
                break
            left.append(_left_in(group, old=bool(controllers)))
    known = [size_bytes for size_bytes in left if size_bytes is not None]
    return min(known) if known else None


def _left_in(group: Path, *, old: bool) -> int | None:
    limit = _read(group / ("memory.limit_in_bytes" if old else "memory.max")).strip()
    used = _read(group / ("memory.usage_in_bytes" if old else "memory.current")).strip()
    if not limit.isdigit() or not used.isdigit():  # "max", or no such group here
        return None
    return max(int(limit) - int(used) + _reclaimable(group), 0)


def _reclaimable(group: Path) -> int:
    """File pages that the system drops when memory is needed."""
    pairs = (line.split() for line in _read(group / "memory.stat").splitlines())
    return sum(int(value) for name, value in pairs if name == "inactive_file")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
