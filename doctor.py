"""Is everything here, and which model suits this machine? `python doctor.py`, or `--json` for a bug report.

Knows what the project needs of a computer. Refuses to change anything on it. What may be missing is imported
only where it is looked at: a half installed environment gets an answer too, with the command that mends it.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (an older one cannot read the rest)
    sys.exit(f"Python 3.11 or newer is needed, this is {platform.python_version()}: make PYTHON=python3.11")

from config import models_dir
from forecast import LEGEND, Outlook, Room, advise, forecast, gigabytes, model_table
from machine import WEIGHT_BYTES, DecodingSpeed, decoding_speed, memory_bandwidth, processor

PROJECT = Path(__file__).parent
NEWEST_PYTHON = (3, 13)  # that the tests were run on
PORTS = {7860: "the chat page", 8000: "the endpoint", 8888: "JupyterLab"}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOCAL = ("localhost", "127.0.0.1")
MEASURING = 2e9  # bytes of memory without which nothing is measured
BUSY = 20  # percent of all cores' time that others may take before it is said


@dataclass(frozen=True)
class Finding:
    """One line of the report; `way_out` is empty where all is well."""

    name: str
    value: str
    way_out: str = ""


@dataclass(frozen=True)
class Report:
    """All that is found out."""

    findings: list[Finding]
    outlooks: list[Outlook]
    advice: str


def examine() -> Report:
    """Look at everything; takes about ten seconds, most of it for measuring how fast this machine decodes."""
    libraries = look_at_libraries()
    models = models_dir()
    room, *of_room = look_at_room(models, downloads_folder())
    speeds, of_speeds = look_at_speed(room.memory)
    findings = [
        look_at_python(),
        libraries,
        look_at_processor(),
        look_at_devices(),
        *of_room,
        *of_speeds,
        look_at_proxies(os.environ),
        look_at_ports(PORTS),
        look_at_browser(),
    ]
    outlooks = forecast(room, speeds)
    return Report(findings, outlooks, libraries.way_out or advise(outlooks))


def look_at_python() -> Finding:
    """The interpreter and the system."""
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    newest = ".".join(map(str, NEWEST_PYTHON))
    tested = sys.version_info[:2] <= NEWEST_PYTHON
    return Finding("Python", value if tested else f"{value}; newer than {newest}, the newest that is tested")


def look_at_libraries(
    requirements: Path = PROJECT / "requirements.txt", constraints: Path = PROJECT / "constraints.txt"
) -> Finding:
    """Which of the required packages are missing, and which differ from the tested versions."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if line]
    tested = dict(line.split("==") for line in constraints.read_text(encoding="utf-8").split())
    tested = {name.lower().replace("_", "-"): number for name, number in tested.items()}
    missing, different = [], []
    for name in names:
        try:
            found = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        wanted = tested.get(name.lower().replace("_", "-"), found)
        if found.partition("+")[0] != wanted:  # torch of another index: 2.13.0+cpu
            different.append(f"{name} {found} instead of {wanted}")
    value = f"{len(names) - len(missing)} of {len(names)} installed"
    if not missing and not different:
        return Finding("Libraries", f"{value}, in the versions that are tested")
    install = f"{sys.executable} -m pip install" if importlib.util.find_spec("pip") else "uv pip install"
    command = f"{install} -r requirements.txt -c constraints.txt"
    if missing:
        return Finding(
            "Libraries", f"{value}; missing: {', '.join(missing)}", f"Install what is missing: {command}"
        )
    return Finding("Libraries", f"{value}; {', '.join(different)}", f"Install the tested versions: {command}")


def look_at_processor() -> Finding:
    """Its name, cores and instructions."""
    found = processor()
    value = f"{found.name}, {found.cores} cores; {', '.join(found.instructions) or 'instructions not known'}"
    if platform.machine() in ("x86_64", "AMD64") and found.instructions and "AVX2" not in found.instructions:
        return Finding(
            "Processor", value, "Without AVX2 answers come slowly: use another machine, if you can."
        )
    return Finding("Processor", value)


def look_at_devices() -> Finding:
    """What OpenVINO can compute on, and with which numbers its CPU plugin is fast."""
    try:
        import telemetry

        telemetry.turn_off()
        import openvino
    except ImportError as error:
        return Finding("OpenVINO", f"not looked at: {error}")
    core = openvino.Core()
    devices = [f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME')})" for name in core.available_devices]
    known = {"FP32", "FP16", "BF16", "INT8"}
    fast = [kind for kind in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if kind in known]
    return Finding("OpenVINO", f"{', '.join(devices)}; the CPU computes in {', '.join(sorted(fast))}")


def downloads_folder() -> Path:
    """Where huggingface_hub keeps what it fetches."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser()


def look_at_room(models: Path, downloads: Path) -> tuple[Room, Finding, Finding]:
    """Memory and disk that can be had, in numbers and in words."""
    folders = [nearest(models), nearest(downloads)]
    closed = [str(one) for one in dict.fromkeys(folders) if not (one.is_dir() and os.access(one, os.W_OK))]
    free = [shutil.disk_usage(folder).free for folder in folders]
    one_disk = len({folder.stat().st_dev for folder in folders}) == 1
    disk = f"{gigabytes(free[0])} free for converted models"
    disk += ", downloads included" if one_disk else f", {gigabytes(free[1])} for downloads"
    mend = "Make room there, or choose other folders: LLM_CHATBOT_MODELS_DIR (converted models) and HF_HOME."
    if closed:
        disk += f"; nothing can be written into {' and '.join(closed)}"
    memory, of_memory = memory_left()
    room = Room(memory, *free, one_disk)
    return room, of_memory, Finding("Disk", disk, mend if closed or min(free) < 1e9 else "")


def memory_left() -> tuple[float | None, Finding]:
    """Bytes that this process can still have: what the machine has available, or a container leaves."""
    try:
        import psutil

        from workspace import available_memory
    except ImportError as error:
        return None, Finding("Memory", f"not looked at: {error}")
    machine = psutil.virtual_memory()
    left = available_memory()
    left = machine.available if left is None else left
    value = f"{gigabytes(left)} available of {gigabytes(machine.total)}"
    if left < 0.9 * machine.available:
        value += f"; the container leaves less than the {gigabytes(machine.available)} of the machine"
    mend = "" if left > MEASURING else "Close other programs, or raise the container's limit."
    return left, Finding("Memory", value, mend)


def look_at_speed(memory: float | None) -> tuple[dict[str, DecodingSpeed], list[Finding]]:
    """How fast memory is read and what a token costs, by precision; empty where that cannot be measured."""
    if memory is not None and memory < MEASURING:
        return {}, [Finding("Speed", f"not measured: that takes {gigabytes(MEASURING)} of memory")]
    try:
        import psutil

        import telemetry

        telemetry.turn_off()
        # Not the load average, in which what this process has just done still counts.
        busy = psutil.cpu_percent(interval=0.5)
        reading = f"{memory_bandwidth() / 1e9:.0f} GB/s"
        if busy > BUSY:
            reading += f"; the processor was busy already ({busy:.0f}%): without that, all this is faster"
        speeds = {precision: decoding_speed(precision) for precision in WEIGHT_BYTES}
    except (ImportError, OSError) as error:
        return {}, [Finding("Speed", f"not measured: {error}")]
    costs = [
        f"{precision} {speed.seconds_per_layer * 1e3:.3f} ms a layer, {speed.bytes_per_second / 1e9:.0f} GB/s"
        for precision, speed in speeds.items()
    ]
    return speeds, [Finding("Memory speed", reading), Finding("One token", "; ".join(costs))]


def look_at_proxies(environment: Mapping[str, str]) -> Finding:
    """Which proxy variables are set; never their values, which may hold passwords."""
    lower = {name.lower(): value for name, value in environment.items() if value}
    names = [name for name in PROXIES if name in lower]
    if not names:
        return Finding("Proxy", "no variable is set")
    spared = re.split(r"[\s,]+", lower.get("no_proxy", ""))
    value = f"{', '.join(names)} set"
    if "*" in spared or set(LOCAL) <= set(spared):
        return Finding("Proxy", f"{value}; local addresses go past it")
    mend = f"Programs on this machine must reach each other: export NO_PROXY={','.join(LOCAL)}"
    return Finding("Proxy", f"{value}, for local addresses too", mend)


def look_at_ports(ports: Mapping[int, str]) -> Finding:
    """Which of the usual ports are taken on the loopback address."""
    taken = [port for port in ports if not is_free(port)]
    if not taken:
        return Finding("Ports", f"{', '.join(map(str, ports))} free")
    words = ", ".join(f"{port} ({ports[port]})" for port in taken)
    return Finding("Ports", f"taken: {words}", "Stop what runs there, or choose another port with --port.")


def is_free(port: int) -> bool:
    """Whether a server could listen at this port of 127.0.0.1."""
    with socket.socket() as server:
        if os.name == "posix":  # on Windows this option would take the port from its owner
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def look_at_browser() -> Finding:
    """Chromium, which only the tests of the page drive."""
    found = next((name for name in CHROMIUM if shutil.which(name)), None)
    return Finding("Chromium", found or "none; the page opens in any browser, its tests are skipped")


def in_words(report: Report) -> str:
    """The report for people."""
    width = max(len(finding.name) for finding in report.findings)
    lines = []
    for finding in report.findings:
        lines.append(f"{'!' if finding.way_out else ' '} {finding.name:{width}}  {finding.value}")
        if finding.way_out:
            lines.append(f"  {'':{width}}  -> {finding.way_out}")
    return "\n".join([*lines, "", model_table(report.outlooks), "", LEGEND, "", report.advice])


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="for a bug report")
    options = parser.parse_args()
    report = examine()
    print(json.dumps(asdict(report), indent=2, ensure_ascii=False) if options.json else in_words(report))


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


if __name__ == "__main__":
    main()
