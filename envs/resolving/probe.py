"""Writes to stdout, as one JSON object, what an interpreter is and which packages it has.

The interpreter in question runs this file as a script: `python -I probe.py`. The script uses only
the standard library, works on any Python from 3.8 on, and imports nothing of flashpool.
`base_interpreter.py` reads its output.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig


def site_dirs() -> list[str]:
    """Return the directories on the path that contain installed packages."""
    names = ("site-packages", "dist-packages")
    return [
        entry for entry in sys.path if os.path.basename(entry) in names and os.path.isdir(entry)
    ]


def metadata_of(path: str) -> dict[str, object]:
    """Return the headers of a METADATA file that matter to a resolver."""
    from email.parser import HeaderParser

    with open(path, encoding="utf-8", errors="replace") as file:
        headers = HeaderParser().parse(file)
    return {
        "name": headers.get("Name"),
        "version": headers.get("Version"),
        "requires": headers.get_all("Requires-Dist") or [],
        "extras": headers.get_all("Provides-Extra") or [],
    }


def packages() -> list[dict[str, object]]:
    """Return every installed distribution; the first on the path wins, as for imports."""
    found: dict[str, dict[str, object]] = {}
    for folder in site_dirs():
        for entry in sorted(os.listdir(folder)):
            file = {".dist-info": "METADATA", ".egg-info": "PKG-INFO"}.get(
                os.path.splitext(entry)[1]
            )
            if file is None:
                continue
            path = os.path.join(folder, entry, file)
            if not os.path.isfile(path):
                continue
            facts = metadata_of(path)
            if facts["name"] and facts["version"]:
                found.setdefault(str(facts["name"]).lower().replace("_", "-"), facts)
    return list(found.values())


def commands() -> dict[str, str]:
    """Return console scripts of the installed packages, each with its `module:function`."""
    from configparser import ConfigParser, Error

    found: dict[str, str] = {}
    for folder in site_dirs():
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry, "entry_points.txt")
            if not entry.endswith((".dist-info", ".egg-info")) or not os.path.isfile(path):
                continue
            points = ConfigParser(delimiters=("=",), interpolation=None, strict=False)
            points.optionxform = str  # type: ignore[assignment, method-assign]
            try:
                points.read(path, encoding="utf-8")
            except (Error, ValueError):
                continue
            for section in ("console_scripts", "gui_scripts"):
                if points.has_section(section):
                    for name, meaning in points.items(section):
                        found.setdefault(name, meaning.partition("[")[0].strip())
    return found


def markers() -> dict[str, str]:
    """Return the environment markers of PEP 508 for this interpreter."""
    implementation = sys.implementation
    version = implementation.version
    return {
        "implementation_name": implementation.name,
        "implementation_version": f"{version.major}.{version.minor}.{version.micro}",
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


def main() -> None:
    """Write the report."""
    report = {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "cache_tag": sys.implementation.cache_tag or "",
        "soabi": sysconfig.get_config_var("SOABI") or "",
        "platform": sysconfig.get_platform(),
        "libc": "-".join(platform.libc_ver()),
        "site_dirs": site_dirs(),
        "markers": markers(),
        "packages": packages(),
        "commands": commands(),
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
