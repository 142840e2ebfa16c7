"""How much main memory a process may still take."""

from __future__ import annotations

from pathlib import Path

_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")


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
    """What the system drops when memory is needed: pages of files, and caches of its own.

    Pages that were read more than once (`active_file`) are among them: those of files that were
    hashed and mapped would else count as taken for good. Groups of the old kind name their own
    pages, and with `total_` those of the groups below, which are in what is used.
    """
    pairs = [line.split() for line in _read(group / "memory.stat").splitlines()]
    sizes = {name: int(value) for name, value in pairs}
    return sum(sizes.get(f"total_{name}", sizes.get(name, 0)) for name in _RECLAIMABLE)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
