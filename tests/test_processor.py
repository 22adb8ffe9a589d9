import pytest

from edgebert.processor import detect_target, saturates


@pytest.mark.parametrize(
    ("flags", "machine", "target"),
    [
        ("sse2 avx2", "x86_64", "avx2"),
        ("avx2 avx512f avx512bw", "x86_64", "avx512"),
        ("avx2 avx512f avx512bw avx512_vnni", "x86_64", "avx512_vnni"),
        ("avx2 avx_vnni", "AMD64", "avx512_vnni"),
        ("asimd", "aarch64", "arm64"),
        ("", "arm64", "arm64"),
        ("", "riscv64", "avx2"),
    ],
)
def test_detect_target(flags: str, machine: str, target: str) -> None:
    assert detect_target(f"processor : 0\nflags\t\t: fpu {flags}\n", machine) == target


def test_detect_target_of_this_machine() -> None:
    assert detect_target() in ("avx2", "avx512", "avx512_vnni", "arm64")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse2 avx2", True), ("avx2 avx512bw", True), ("avx2 avx_vnni", False), ("asimd", False), ("", False)],
)
def test_saturates_only_where_that_is_known(flags: str, expected: bool) -> None:
    assert saturates(f"flags : fpu {flags}\n") == expected
