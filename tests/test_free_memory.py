"""Free memory inside containers: control groups of both versions, from files laid out as the kernel does."""

import psutil
import pytest

from radin.memory import free_memory, left_in_groups

GB = 1 << 30


def lay_out(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def group(folder, limit, used, inactive):
    return {
        f"sys/fs/cgroup/{folder}memory.max": limit,
        f"sys/fs/cgroup/{folder}memory.current": used,
        f"sys/fs/cgroup/{folder}memory.stat": f"anon 5\nfile 7\ninactive_file {inactive}\nactive_file 3",
    }


def old_group(folder, limit, used, inactive):
    return {
        f"sys/fs/cgroup/memory/{folder}memory.limit_in_bytes": limit,
        f"sys/fs/cgroup/memory/{folder}memory.usage_in_bytes": used,
        f"sys/fs/cgroup/memory/{folder}memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}",
    }


V2, V1 = "0::/", "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/docker/1f"


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        (V2, group("", 8 * GB, 5 * GB, GB), [4 * GB]),
        (V2, group("", "max", 5 * GB, GB), []),
        (V2, group("", GB, 2 * GB, 0), [0]),
        ("0::/job/step", group("job/", 8 * GB, 5 * GB, 0) | group("job/step/", "max", GB, 0), [3 * GB]),
        (
            "0::/job/step",
            group("job/", 8 * GB, 5 * GB, 0) | group("job/step/", 2 * GB, GB, GB // 2),
            [3 * GB // 2, 3 * GB],
        ),
        (V1, old_group("docker/1f/", 4 * GB, GB, GB // 4), [13 * GB // 4]),
        (V1, old_group("", 4 * GB, GB, GB // 4), [13 * GB // 4]),  # the container sees its own group as the root
        (V1, old_group("", 9223372036854771712, GB, 0), []),
        ("0::/../other", group("", 8 * GB, 5 * GB, GB), [4 * GB]),
        (V2, {}, []),
    ],
)
def test_what_limits_leave(tmp_path, own, files, left):
    assert list(left_in_groups(lay_out(tmp_path, files | {"proc/self/cgroup": own}))) == left


def test_elsewhere_there_are_no_groups(tmp_path):
    assert list(left_in_groups(tmp_path)) == []


def test_a_group_without_statistics_counts_all_it_uses(tmp_path):
    files = group("", 8 * GB, 5 * GB, GB)
    del files["sys/fs/cgroup/memory.stat"]
    assert list(left_in_groups(lay_out(tmp_path, files | {"proc/self/cgroup": V2}))) == [3 * GB]


def test_never_more_than_the_host_has():
    assert 0 < free_memory() <= psutil.virtual_memory().total
