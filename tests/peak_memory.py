"""How much memory a piece of work takes at its peak, in a process of its own."""

import subprocess
import sys

from conftest import PROJECT

WATCHED = """
import sys, threading, time
{imports}
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
peak, before = 0, anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
{work}
print((peak - before) * 1024)
"""


def peak_memory(imports: str, work: str, *arguments: object) -> int:
    """Bytes of anonymous memory that `work` takes at most, besides what the imports have; Linux only.

    Args:
        imports, work: Python; `sys.argv[1:]` are the arguments.
    """
    command = [sys.executable, "-c", WATCHED.format(imports=imports, work=work), *map(str, arguments)]
    output = subprocess.check_output(command, cwd=PROJECT, text=True, stderr=subprocess.DEVNULL)
    return int(output.split()[-1])
