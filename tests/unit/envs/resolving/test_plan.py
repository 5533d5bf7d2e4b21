"""The choice between base, layer and isolated; errors from uv's output; memos and settings."""

import copy
import pickle
from pathlib import Path

import pytest
from packaging.version import Version

from flashpool.envs import errors, uv_cli
from flashpool.envs.building.metadata import problems
from flashpool.envs.concurrency.failure_cache import Failures
from flashpool.envs.resolving.base_interpreter import BaseFacts, BasePackage
from flashpool.envs.resolving.base_stubs import stub_version
from flashpool.envs.resolving.memo import Memo
from flashpool.envs.resolving.plan import clash, decide, from_base, open_lines, parse_lock
from flashpool.envs.resolving.spec import NormalSpec, Spec, normalise
from flashpool.envs.settings import REFERENCE_KINDS, EnvSettings
from flashpool.envs.store.locations import file_system_of, is_remote
from flashpool.envs.uv_words import classify, trimmed


def facts(*packages: BasePackage) -> BaseFacts:
    return BaseFacts(
        python=Path("/python"),
        real_python=Path("/python"),
        version="3.12.1",
        tag="cpython-312",
        platform="linux-x86_64",
        site_dirs=(),
        packages={package.name: package for package in packages},
        markers={"python_version": "3.12", "sys_platform": "linux"},
        fingerprint="f" * 40,
        interpreter_identity="e" * 40,
    )


def package(name: str, version: str, *requires: str, extras: str = "") -> BasePackage:
    return BasePackage(
        name=name, version=Version(version), requires=requires, extras=frozenset(extras.split())
    )


def spec(*requirements: str) -> NormalSpec:
    return normalise(Spec(requirements=requirements), references=REFERENCE_KINDS)


def test_lock_lines_are_parsed_with_their_origin() -> None:
    rows = parse_lock("alpha==1.0   # via beta, -r x.in\nb @ file:///x  # via -r x.in\n# no\n")
    assert [(row.name, row.line, row.via) for row in rows] == [
        ("alpha", "alpha==1.0", "beta"),
        ("b", "b @ file:///x", ""),
    ]


def test_the_base_alone_satisfies_a_request_where_it_can() -> None:
    base = facts(package("torch", "2.4.0+cu128"), package("numpy", "1.26.4"))
    plan = from_base(spec("torch==2.4.0", "numpy<2"), base)
    assert plan is not None
    assert plan.mode == "base"
    assert [decision.version for decision in plan.decisions] == ["1.26.4", "2.4.0+cu128"]
    assert from_base(spec("torch==2.5.0"), base) is None
    assert from_base(spec("pandas"), base) is None


def test_extras_of_base_packages_are_checked() -> None:
    web = package("web", "1.0", "fast>=2 ; extra == 'quick'", extras="quick")
    assert from_base(spec("web[quick]"), facts(web)) is None
    assert from_base(spec("web[quick]"), facts(web, package("fast", "1.0"))) is None
    assert from_base(spec("web[quick]"), facts(web, package("fast", "2.0"))) is not None
    assert from_base(spec("web[unknown]"), facts(web)) is None


def test_a_layer_leaves_out_what_the_base_has() -> None:
    base = facts(package("torch", "2.4.0+cu128"))
    lock = parse_lock("torch==2.4.0+cu128  # via vision\nvision==0.19.0\n")
    plan = decide(lock, lock, spec("vision"), base, "")
    assert plan.mode == "layer"
    assert plan.lines == ("vision==0.19.0",)
    assert {d.name: d.where for d in plan.decisions} == {"torch": "base", "vision": "layer"}


def test_a_major_version_behind_is_isolated_and_says_so() -> None:
    base = facts(package("numpy", "1.26.4"))
    held = parse_lock("numpy==1.26.4+flashpool.base  # via tool\ntool==1.9\n")
    free = parse_lock("numpy==2.2.0  # via tool\ntool==3.0\n")
    plan = decide(held, free, spec("tool"), base, "")
    assert plan.mode == "isolated"
    assert plan.reason == "with the base's versions tool would be 1.9, a major version behind 3.0"
    assert plan.lines == ("numpy==2.2.0", "tool==3.0")


def test_a_minor_step_back_stays_a_layer_and_is_explained() -> None:
    base = facts(package("numpy", "1.26.4"))
    held = parse_lock("numpy==1.26.4+flashpool.base  # via tool\ntool==3.0\n")
    free = parse_lock("numpy==2.2.0  # via tool\ntool==3.1\n")
    plan = decide(held, free, spec("tool"), base, "")
    assert plan.mode == "layer"
    assert "3.1 exists, but does not go with the base" in plan.decisions[1].why


def test_a_conflict_is_isolated() -> None:
    base = facts(package("numpy", "1.26.4"))
    free = parse_lock("numpy==2.2.6\n")
    plan = decide(None, free, spec("numpy==2.2.6"), base, "the base conflicts: ...")
    assert plan.mode == "isolated"
    assert plan.lines == ("numpy==2.2.6",)


def test_a_clash_is_found_from_the_requirements_alone() -> None:
    base = facts(package("numpy", "1.26.4"), package("torch", "2.4.0+cu128"))
    assert clash(spec("numpy==2.2.6"), base) == (
        "the base conflicts: it has numpy 1.26.4, not numpy==2.2.6"
    )
    for fine in ("numpy", "numpy<2", "torch==2.4.0", "pandas==9", "numpy>2 ; sys_platform == 'x'"):
        assert clash(spec(fine), base) == ""


def test_lines_that_leave_a_choice_of_versions_are_open() -> None:
    base = facts(package("numpy", "1.26.4"))
    asked = spec("numpy", "a==1.0", "b>=1", "c==1.*", "d @ https://x/d.whl", "e==1.0,>0")
    assert open_lines(asked, base) == ("b>=1", "c==1.*")


def test_stubs_of_base_packages_have_a_local_version() -> None:
    assert stub_version(package("a", "1.0")) == "1.0+flashpool.base"
    assert stub_version(package("a", "1.0+cu128")) == "1.0+cu128"


def test_merged_metadata_shows_unmet_requirements() -> None:
    base = facts(package("numpy", "1.26.4"))
    layer = {"pandas": package("pandas", "2.0", "numpy>=1.20", "tz ; sys_platform == 'win32'")}
    assert problems(["pandas"], layer, base) == []
    assert problems(["pandas>=3"], layer, base) == [
        "the request needs pandas>=3, but pandas 2.0 is there"
    ]
    broken = {"pandas": package("pandas", "2.0", "numpy>=2", "tz")}
    assert problems(["pandas"], broken, base) == [
        "pandas needs numpy>=2, but numpy 1.26.4 is there",
        "pandas needs tz, which is not there",
    ]


def test_merged_metadata_follows_extras() -> None:
    web = package("web", "1.0", "fast ; extra == 'quick'", extras="quick")
    assert problems(["web"], {"web": web}, facts()) == []
    assert problems(["web[quick]"], {"web": web}, facts()) == [
        'web needs fast; extra == "quick", which is not there'
    ]


UNTRUSTED = (
    "error: Failed to fetch: https://me:secret@pypi.example/simple/tblib/\n"
    "  cause: error sending request for url (https://pypi.example/simple/tblib/)\n"
    "  cause: invalid peer certificate: UnknownIssuer\n"
)


def test_an_untrusted_certificate_is_not_retryable() -> None:
    failure = classify(UNTRUSTED, "resolve")
    assert isinstance(failure, errors.CertificateRefused)
    assert not failure.retryable
    assert "UnknownIssuer" in failure.what
    assert "SSL_CERT_FILE" in failure.advice
    assert "UV_SYSTEM_CERTS" in failure.advice
    named = str(failure.of(["humanize"]))
    assert "requirement: humanize\nhost: pypi.example\n" in named
    assert "tblib" not in named
    assert not failure.of(["humanize"]).retryable


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "1"),
        ({"UV_SYSTEM_CERTS": "0"}, "0"),
        ({"UV_NATIVE_TLS": "false"}, None),
    ],
)
def test_uv_uses_the_certificates_of_the_system(
    chosen: dict[str, str],
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    certificates = tmp_path / "certs"
    monkeypatch.setattr(uv_cli, "_CERTIFICATES", (str(certificates),))
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    uv = uv_cli.Uv(executable=tmp_path, cache=tmp_path, settings=EnvSettings(), limit_s=1)
    # A slim image has no certificates, so uv keeps its own list there.
    certificates.mkdir()
    assert uv._environment(()).get("UV_SYSTEM_CERTS") == chosen.get("UV_SYSTEM_CERTS")
    (certificates / "own.pem").touch()
    assert uv._environment(()).get("UV_SYSTEM_CERTS") == expected


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("error: No solution found when resolving dependencies\n  cause: x", "ResolutionFailed"),
        ("error: x\n  cause: No space left on device (os error 28)", "DiskFull"),
        ("error: Request failed after 3 retries\n  cause: dns error", "RegistryUnreachable"),
        (
            "error: Failed to build `x`\n error: command 'gcc' failed: No such file",
            "CompilerMissing",
        ),
        (
            "error: Failed to build `x`\n x.c:1:10: fatal error: Python.h: No such file",
            "CompilerMissing",
        ),
        ("error: Failed to build `x`\n  cause: boom", "BuildFailed"),
        ("error: No interpreter found for Python 3.99", "InterpreterMissing"),
    ],
)
def test_uvs_output_is_classified(words: str, kind: str) -> None:
    failure = classify(f"Using Python 3.12\n{words}", "build")
    assert type(failure).__name__ == kind
    assert failure.words.startswith("error:")
    assert failure.phase in {"build", "resolve"}


def test_a_missing_header_names_its_package() -> None:
    failure = classify(
        "error: Failed to build `pg==1`\n fatal error: libpq-fe.h: No such file", "build"
    )
    assert failure.requirement == "pg==1"
    assert "libpq-dev" in failure.advice


def test_credentials_are_masked() -> None:
    assert trimmed("error: https://user:secret@host/x") == "error: https://***@host/x"


def test_long_output_keeps_both_ends() -> None:
    text = trimmed("error: begin\n" + "x\n" * 10_000 + "the end")
    assert len(text) < 4100
    assert text.startswith("error: begin")
    assert text.endswith("the end")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "is_full"])
def test_errors_survive_pickling(name: str) -> None:
    kind = getattr(errors, name)
    failure = kind("what", phase="p", requirement="r", words="w", advice="a")
    for again in (pickle.loads(pickle.dumps(failure)), copy.copy(failure)):
        assert type(again) is kind
        assert str(again) == str(failure)
        assert vars(again) == vars(failure)


def test_remembered_failures_expire() -> None:
    now = [0.0]
    failures = Failures(60, clock=lambda: now[0])
    failures.remember("a", errors.ResolutionFailed("x"))
    failures.remember("b", errors.RegistryUnreachable("x"))
    assert str(failures.recall("a")) == "x"
    assert failures.recall("b") is None
    now[0] = 61
    assert failures.recall("a") is None


def test_memo_has_a_lifetime_and_refresh_skips_it() -> None:
    now = [0.0]
    memo = Memo(10, clock=lambda: now[0])
    memo.put(Spec(requirements=("a",)), "d" * 40)
    assert memo.get(Spec(requirements=("a",))) == "d" * 40
    assert memo.get(Spec(requirements=("a",), refresh=True)) is None
    now[0] = 11
    assert memo.get(Spec(requirements=("a",))) is None


def test_the_file_system_of_a_path_is_found() -> None:
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:5 / /vol rw - fuse.juicefs x rw\n"
        "3 1 0:6 / /vol/in\\040side rw - tmpfs x rw\n"
    )
    assert file_system_of(Path("/home"), mounts) == "ext4"
    assert file_system_of(Path("/vol/x"), mounts) == "fuse.juicefs"
    assert file_system_of(Path("/volume"), mounts) == "ext4"
    assert file_system_of(Path("/vol/in side/x"), mounts) == "tmpfs"
    assert is_remote("nfs4")
    assert is_remote("fuse.s3fs")
    assert not is_remote("overlay")


def test_settings_are_read_from_the_environment() -> None:
    settings = EnvSettings.from_environ(
        {"FLASHPOOL_VOLUME": "/v", "FLASHPOOL_ENV_QUOTA_MB": "200", "FLASHPOOL_VOLUME_KEY": "k"}
    )
    assert (settings.volume, settings.quota_mb, settings.volume_key) == (Path("/v"), 200, b"k")
    assert "k" not in repr(settings).replace("runtime", "").split("volume_key")[-1][:3]
    with pytest.raises(ValueError, match="FLASHPOOL_ENV_MODE"):
        EnvSettings.from_environ({"FLASHPOOL_ENV_MODE": "x"})
    with pytest.raises(ValueError, match="must be a number"):
        EnvSettings.from_environ({"FLASHPOOL_ENV_QUOTA_MB": "much"})
