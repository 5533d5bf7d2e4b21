from pathlib import Path

import pytest

from flashpool.frontends.apps.compiled_modules import (
    explain_foreign,
    find_foreign,
    foreign_modules,
)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("a/_x.cpython-312-x86_64-linux-gnu.so", ""),
        ("a/_x.cpython-312.so", ""),
        ("a/_x.abi3.so", ""),
        ("a/_x.so", ""),
        ("a/libx-1.2.so.3", ""),
        ("a/lib.x.1.so", ""),
        ("a/_x.cpython-311-x86_64-linux-gnu.so", "cpython-311-x86_64-linux-gnu"),
        ("a/_x.cpython-312t-x86_64-linux-gnu.so", "cpython-312t-x86_64-linux-gnu"),
        ("a/_x.cpython-312-aarch64-linux-gnu.so", "cpython-312-aarch64-linux-gnu"),
        ("a/_x.cpython-312-x86_64-linux-musl.so", "cpython-312-x86_64-linux-musl"),
        ("a/_x.cpython-312-darwin.so", "cpython-312-darwin"),
        ("a/_x.pypy310-pp73-x86_64-linux-gnu.so", "pypy310-pp73-x86_64-linux-gnu"),
        ("a/_x.cp312-win_amd64.pyd", "cp312-win_amd64"),
        ("a/_x.pyd", "windows"),
    ],
)
def test_file_names_show_which_python_a_module_is_for(name: str, tag: str) -> None:
    found = foreign_modules([name], "3.12.1", "x86_64")
    assert [(each.file, each.tag) for each in found] == ([(name, tag)] if tag else [])


def test_a_module_may_come_compiled_for_several_pythons() -> None:
    names = [f"a/_x.cpython-3{minor}-x86_64-linux-gnu.so" for minor in (10, 11, 12)]
    assert foreign_modules(names, "3.11", "x86_64") == []
    assert [each.file for each in foreign_modules(names, "3.13", "x86_64")] == names[:1]
    assert (
        len(foreign_modules([*names, "b/_x.cpython-310-x86_64-linux-gnu.so"], "3.11", "x86_64"))
        == 1
    )


def test_the_explanation_names_file_tag_and_python(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "_core.cpython-311-x86_64-linux-gnu.so").touch()
    (tmp_path / "numpy-2.1.0.dist-info").mkdir()
    (tmp_path / "numpy-2.1.0.dist-info" / "WHEEL").write_text(
        "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_17_x86_64\nTag: cp311-cp311-linux_x86_64\n"
    )
    found = find_foreign(tmp_path, "3.12")
    sentence = explain_foreign(found, "3.12")
    assert sentence.startswith(
        "numpy/_core.cpython-311-x86_64-linux-gnu.so is compiled for cpython-311-x86_64-linux-gnu "
        "(and 1 more like it), and the app's Python is 3.12: "
    )
    assert find_foreign(tmp_path, "3.11") == []
    assert explain_foreign([], "3.11") == ""


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", True),
        ("cp39-abi3-manylinux_2_17_x86_64", True),
        ("cp312-cp312-manylinux_2_17_x86_64", True),
        ("cp312-none-manylinux_2_17_x86_64", True),
        ("cp311-cp311-manylinux_2_17_x86_64", False),
        ("cp312-cp312t-manylinux_2_17_x86_64", False),
        ("pp310-pypy310_pp73-manylinux_2_17_x86_64", False),
    ],
)
def test_wheel_tags_show_which_python_a_package_is_for(
    tmp_path: Path, tag: str, fits: bool
) -> None:
    (tmp_path / "a-1.0.dist-info").mkdir()
    (tmp_path / "a-1.0.dist-info" / "WHEEL").write_text(f"Tag: {tag}\n")
    assert (find_foreign(tmp_path, "3.12") == []) is fits
