"""``minigrad new-kernel``: what it writes runs as it is, and it writes all of it or nothing."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from minigrad import cli
from minigrad.new_kernel import EXAMPLE, LONGEST_NAME, TEMPLATES, NewKernelError, new_kernel

NAME = "soft_length"
FORMS = ("file", "package")


def run(*command, cwd):
    """What a command prints; it must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def everything(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def refused(capsys, *arguments):
    """What the command says when it refuses its arguments."""
    assert cli.main(["new-kernel", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("minigrad new-kernel: error: ")
    return captured.err


# ---- what is written --------------------------------------------------------------------------------------


def test_a_file_checks_itself_and_passes_its_tests(tmp_path, capsys):
    folder = tmp_path / "some" / "where"
    assert cli.main(["new-kernel", NAME, "--directory", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert everything(folder) == [Path(f"{NAME}.py"), Path(f"test_{NAME}.py")]
    assert f"cd {folder}" in printed and f"python {NAME}.py" in printed
    printed = run(sys.executable, f"{NAME}.py", cwd=folder)
    assert f"{NAME}: every kernel and the gradients are right" in printed
    assert re.search(r"^ +cpu +cython +[\d.]+ [mu]s", printed, re.M)
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", f"test_{NAME}.py", cwd=folder)


def test_a_package_installs_and_passes_its_tests(tmp_path, capsys):
    """In a virtual environment of its own, which sees what is installed in this one."""
    assert cli.main(["new-kernel", NAME, "--package", "--directory", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"cd {tmp_path / NAME}" in printed and "python -m pytest" in printed
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin/python"
    (site,) = home.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-build-isolation", "--no-index")
    run(*pip, "--quiet", "-e", ".[test]", cwd=tmp_path / NAME)
    assert " passed" in run(python, "-m", "pytest", "-q", cwd=tmp_path / NAME)
    assert re.search(r"^ +cpu +cython +[\d.]+ [mu]s", run(python, "benchmark.py", cwd=tmp_path / NAME), re.M)

    run(*pip, "--quiet", "--no-deps", "--target", tmp_path / "copy", ".", cwd=tmp_path / NAME)
    shipped = {path.name for path in (tmp_path / "copy" / NAME).iterdir()}
    assert {"ops.py", f"{NAME}.cu", f"{NAME}.pyx"} <= shipped


@pytest.mark.parametrize("form", FORMS)
def test_the_example_s_name_is_gone(form, tmp_path):
    for path in new_kernel(NAME, package=form == "package", directory=tmp_path):
        assert EXAMPLE not in str(path) and EXAMPLE not in path.read_text()
    assert any(NAME in path.read_text() for path in tmp_path.rglob("*.py"))


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="needs ruff")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["f2", "a" * LONGEST_NAME])
def test_what_is_written_is_formatted(form, name, tmp_path):
    """By ruff's own settings, whatever the length of the name."""
    new_kernel(name, package=form == "package", directory=tmp_path)
    run(sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", ".", cwd=tmp_path)
    run(sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache", "--check", ".", cwd=tmp_path)


# ---- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my-op", "Python identifier.*'my-op'; 'my_op' would do"),
        ("2nd", "not starting with a digit; got '2nd'$"),
        ("", "Python identifier.*got ''"),
        ("größe", "Python identifier"),
        ("a/b", "Python identifier"),
        ("../up", "Python identifier"),
        ("class", "keyword of Python"),
        ("matmul", r"minigrad has an op 'matmul' already.*get_op\(\"matmul\"\)"),
        ("float", "'float' means something else"),
        ("mg", "'mg' means something else"),
        ("epsilon", "'epsilon' means something else"),
        ("json", "a module 'json' already"),
        ("minigrad", "already|something else"),
        ("__main__", "a module '__main__' already"),
        ("test_it", "pytest would take 'test_it' for a test"),
        ("a" * (LONGEST_NAME + 1), f"at most {LONGEST_NAME} letters"),
    ],
)
def test_a_bad_name(form, name, words, tmp_path):
    with pytest.raises(NewKernelError, match=words):
        new_kernel(name, package=form == "package", directory=tmp_path / "new")
    assert everything(tmp_path) == []


def test_files_in_the_way(tmp_path, capsys):
    for name in (f"{NAME}.py", f"test_{NAME}.py"):
        (tmp_path / name).write_text("mine")
        assert f"{name}' exists already; nothing was written" in refused(
            capsys, NAME, "--directory", tmp_path
        )
        assert everything(tmp_path) == [Path(name)] and (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_a_folder_in_the_way(tmp_path, capsys):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine").write_text("mine")
    message = refused(capsys, NAME, "--package", "--directory", tmp_path)
    assert f"{NAME}' is not empty; nothing was written" in message
    assert everything(tmp_path) == [Path(NAME), Path(NAME, "mine")]


def test_an_empty_folder_is_not_in_the_way(tmp_path):
    (tmp_path / NAME).mkdir()
    new_kernel(NAME, package=True, directory=tmp_path)
    assert (tmp_path / NAME / "pyproject.toml").is_file()


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_cannot_be_written_to(form, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--package"] if form == "package" else []
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/such")):
        message = refused(capsys, NAME, "--directory", folder, *options)
        assert f"cannot write to the folder '{folder}'" in message
    assert everything(tmp_path) == [Path("file")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(capsys, NAME, "--directory", tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_half_written(form, tmp_path, monkeypatch):
    """The disk is full after some files."""
    written = []
    write_text = Path.write_text

    def full(path, text, **options):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(NewKernelError, match="No space left on device"):
        new_kernel(NAME, package=form == "package", directory=tmp_path)
    assert written and everything(tmp_path) == []


def test_templates_are_named_by_the_example():
    assert (TEMPLATES / "file" / f"{EXAMPLE}.py").is_file()
