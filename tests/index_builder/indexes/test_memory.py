"""Available memory, on made-up systems and on this one."""

from index_builder.indexes.memory import available_bytes

MIB = 2**20


def system(root, *, available_mib=8000, group="", files=None):
    """`/proc` and `/sys/fs/cgroup` of a made-up Linux."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 9999999 kB\nMemAvailable: {available_mib * 1024} kB\n"
    )
    (root / "proc/self/cgroup").write_text(group)
    for name, content in (files or {}).items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return available_bytes(root / "proc", root / "cgroup")


def test_without_a_container_the_system_says(tmp_path):
    assert system(tmp_path) == 8000 * MIB


def test_a_container_s_limit_counts_less_what_is_used_for_good(tmp_path):
    files = {
        "app/memory.max": 1000 * MIB,
        "app/memory.current": 700 * MIB,
        "app/memory.stat": f"anon 5\ninactive_file {200 * MIB}\nactive_file {50 * MIB}\n"
        f"slab_reclaimable {10 * MIB}\nslab_unreclaimable {5 * MIB}\nunevictable 9",
    }
    assert system(tmp_path, group="0::/app", files=files) == (300 + 200 + 50 + 10) * MIB


def test_a_limit_further_up_counts_too(tmp_path):
    files = {
        "memory.max": 2000 * MIB,
        "memory.current": 500 * MIB,
        "a/memory.max": "max",
        "a/memory.current": 1,
        "a/b/memory.max": 3000 * MIB,
        "a/b/memory.current": 0,
    }
    assert system(tmp_path, group="0::/a/b", files=files) == 1500 * MIB


def test_the_old_kind_of_groups_counts(tmp_path):
    files = {
        "memory/docker/1/memory.limit_in_bytes": 600 * MIB,
        "memory/docker/1/memory.usage_in_bytes": 300 * MIB,
        "memory/docker/1/memory.stat": f"active_file 1\ninactive_file 2\n"
        f"total_active_file {120 * MIB}\ntotal_inactive_file {80 * MIB}",
    }
    group = "5:cpu:/docker/1\n4:memory:/docker/1"
    assert system(tmp_path, group=group, files=files) == 500 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    files = {"memory.max": 100 * MIB, "memory.current": 200 * MIB}
    assert system(tmp_path, group="0::/", files=files) == 0


def test_a_system_that_says_nothing_gives_none(tmp_path):
    assert available_bytes(tmp_path / "no", tmp_path / "no") is None


def test_this_system_has_some_memory():
    found = available_bytes()
    assert found is None or found > MIB
