"""How much memory of the host is free."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory"]

_CGROUPS = (  # limit and use of the group that a container's processes are in
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where the system does not say."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    for limit, used in _CGROUPS:
        try:
            # The use counts what files are cached, which the system gives up when it must; half of the limit stays.
            most = int(Path(limit).read_text())
            found.append(max(most - int(Path(used).read_text()), most // 2))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found, default=None)
