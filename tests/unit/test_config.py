"""The flags, as an operator types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kilo.config import FLAGS, Config, FlagError, differing, duration, first_word, load, split


def config(*arguments: str, **environment: str) -> Config:
    texts, words = split(arguments)
    assert words == []
    return load(texts, environment)


def test_defaults_are_those_of_the_table() -> None:
    assert config("--hostname=n") == Config(hostname="n")
    assert load({}, {}).hostname != ""


@pytest.mark.parametrize("form", [["--port", "5"], ["-port", "5"], ["--port=5"], ["-port=5"]])
def test_one_dash_or_two_with_or_without_equals(form: list[str]) -> None:
    assert config(*form).port == 5


@pytest.mark.parametrize(
    ("argument", "value"),
    [("--cni", True), ("-cni=0", False), ("--cni=false", False), ("--cni=T", True), ("--cni=F", False)],
)
def test_booleans_are_those_of_go(argument: str, value: bool) -> None:
    assert config(argument).cni is value


def test_a_boolean_does_not_swallow_the_next_word() -> None:
    assert split(["--cni", "false"])[1] == ["false"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0), ("+5s", 5), ("1h1m1s", 3661)],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1x", "1s 2s", "-5s", "1m30", "ten"])
def test_what_go_refuses_as_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        duration(text)


def test_lists_add_up() -> None:
    got = config("--service-cidr=10.0.0.1/8,11.0.0.0/8", "--service-cidr", "fd00:1::/64").service_cidr
    assert got == ("10.0.0.0/8", "11.0.0.0/8", "fd00:1::/64")


def test_the_command_line_wins_over_the_environment() -> None:
    assert config("--port=1", KILO_PORT="2").port == 1
    assert config(KILO_PORT="2", KILO_MESH_GRANULARITY="full", KILO_CNI="0") == Config(
        hostname=load({}, {}).hostname, port=2, mesh_granularity="full", cni=False
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [(":1107", ("", 1107)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:1107", ("::1", 1107))],
)
def test_listen(text: str, value: tuple[str, int]) -> None:
    assert config(f"--listen={text}").listen == value


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("backend", "etcd"),
        ("cni", "yes"),
        ("cni-path", "relative"),
        ("compatibility", "calico"),
        ("encapsulate", "sometimes"),
        ("firewall", "iptables"),
        ("hostname", "Bad_Name"),
        ("interface", "a-name-that-is-too-long"),
        ("interface", "a/b"),
        ("internal-cidr", "10.0.0.0"),
        ("listen", "1107"),
        ("listen", "::1:1107"),
        ("listen", ":65536"),
        ("log-level", "loud"),
        ("mesh-granularity", "node"),
        ("master", "foo"),
        ("master", "ftp://x"),
        ("mtu", "12"),
        ("mtu", "automatic"),
        ("port", "0"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "１"),
        ("resync-period", "30"),
        ("resync-period", "0s"),
        ("run-dir", "run"),
        ("run-dir", "/" + 75 * "x"),
        ("run-dir", "/" + 38 * "ä"),
        ("service-cidr", "10.0.0.0/33"),
        ("subnet", "10.4.0.0/16,10.5.0.0/16"),
        ("subnet", "ten"),
        ("topology-label", "/x"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(flag: str, text: str) -> None:
    allowed = next(f.allowed for f in FLAGS if f.name == flag)
    for given in ([f"--{flag}={text}"], []):
        environment = {} if given else {"KILO_" + flag.upper().replace("-", "_"): text}
        with pytest.raises(FlagError) as caught:
            config(*given, **environment)
        message = str(caught.value)
        assert flag in message.lower().replace("_", "-")
        assert repr(text) in message
        assert allowed in message
        assert "\n" not in message


LINK_NAMES_REFUSED = {
    "a template of the kernel's": ["kilo%d", "kilo%", "%d", "%%"],
    "refused by the kernel": ["", ".", "..", "a/b", "a:b", " ", "ki lo", "kilo\t", "kilo\n", "kil\u00e0"],
    "longer than 15 bytes": ["kilo456789abcdef", 8 * "ä"],
    "cannot be shown": ["kilo\0", "kilo\x1b[31m", "kilo\u2028", "kilo\u202e0"],
    "a directory of settings": ["all", "default"],
    "made by the kernel": [
        "lo",
        "tunl0",
        "sit0",
        "gre0",
        "gretap0",
        "erspan0",
        "ip_vti0",
        "ip6tnl0",
        "ip6gre0",
    ],
    "another device of the mesh's": ["kube-bridge", "flannel.1", "cilium_tunl"],
    "an option of programs": ["-f", "--version", "-kilo0"],
    "a pattern of iptables": ["kilo+", "+"],
}


@pytest.mark.parametrize(("kind", "names"), LINK_NAMES_REFUSED.items())
def test_interface_name_that_is_not_literal_is_refused(kind: str, names: list[str]) -> None:
    for name in names:
        for arguments, environment in (([f"--interface={name}"], {}), ([], {"KILO_INTERFACE": name})):
            with pytest.raises(FlagError) as caught:
                config(*arguments, **environment)
            assert repr(name) in str(caught.value), kind
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["kilo0", "wg-0", "k", "kilo456789abcde", "eth0.100", "kilo_0", "Default", "lo0", "ki+lo", "kïlo0"],
)
def test_interface_name_that_the_kernel_accepts_is_accepted(name: str) -> None:
    assert config(f"--interface={name}").interface == name


@pytest.mark.parametrize("command", [[], ["netctl"], ["plan"], ["doctor"], ["status"], ["cleanup"]])
def test_interface_template_ends_every_command_with_status_2(command: list[str]) -> None:
    done = kg(*command, "--interface=kilo%d")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("kg") and "--interface: 'kilo%d' is not allowed" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["--port"], ["--port=0"], ["frobnicate"], ["cni", "extra"]]
)
def test_the_program_ends_with_one_line_and_status_2(arguments: list[str]) -> None:
    done = kg(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kg: ")


@pytest.mark.parametrize("words", [[], ["netctl"], ["watcher"], ["status"], ["tail"], ["restart", "cni"]])
def test_a_run_dir_that_no_socket_fits_in_is_refused_by_every_command(words: list[str]) -> None:
    done = kg(*words, "--run-dir=/tmp/" + 200 * "x")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--run-dir: " in done.stderr and "at most 75 bytes" in done.stderr


@pytest.mark.parametrize("words", [[], ["netctl"], ["mesh"]])
@pytest.mark.parametrize("place", ["/proc/nothing/here", "FILE/below"])
def test_a_run_dir_that_cannot_be_made_is_told(words: list[str], place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run_dir = place.replace("FILE", str(tmp_path / "file"))
    done = kg(*words, "--master=http://127.0.0.1:9", f"--run-dir={run_dir}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert run_dir in done.stderr


def kg(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kilo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_version_and_help() -> None:
    for arguments in (["version"], ["--version"], ["-version=true"]):
        assert kg(*arguments).stdout.strip() == "0.1.0"
    told = kg("--help").stdout
    assert all(f"--{flag.name} " in told for flag in FLAGS)


def test_what_differs_from_the_defaults_makes_the_same_config() -> None:
    config = load(
        {
            "listen": ["127.0.0.1:99"],
            "service-cidr": ["10.0.0.0/8"],
            "resync-period": ["1m"],
            "mtu": ["auto"],
        },
        {},
    )
    found = msgspec.json.decode(msgspec.json.encode(differing(config)))
    assert found.keys() == {"listen", "service_cidr", "resync_period", "mtu", "hostname"}
    assert msgspec.convert(found, Config) == config
    secret = load({"master": ["https://user:password@203.0.113.1"]}, {})
    assert "master" not in differing(secret)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("status --mtu 1400", 0),
        ("--mtu 1400 status", 2),
        ("-mtu=1400 --local status", 2),
        ("--hostname status", 2),
        ("--unknown status", 1),
        ("--local -- status", 2),
        ("- status", 0),
        ("--hostname", 1),
        ("", 0),
    ],
)
def test_the_first_word_is_no_flag_s_value(line: str, place: int) -> None:
    assert first_word(line.split(), {flag.name: flag for flag in FLAGS}) == place
