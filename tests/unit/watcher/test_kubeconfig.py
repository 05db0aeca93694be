from __future__ import annotations

import json
import re
from contextlib import closing
from typing import Any

import msgspec
import pytest

from kilo.errors import PermanentError
from kilo.watcher import kubeconfig
from kilo.watcher.kubeconfig import Kubeconfig, User, parse_kubeconfig
from kilo.watcher.session import Sessions
from tests.unit.watcher import kubectl

SECRET = "c2VjcmV0IGtleQ"
PATH = "/etc/kubernetes/kubeconfig"
YAML = f"""
apiVersion: v1
kind: Config
current-context: here
preferences: {{}}
contexts:
- {{name: there, context: {{cluster: far, user: none}}}}
- {{name: here, context: {{cluster: near, user: me}}}}
clusters:
- name: near
  cluster:
    server: https://192.0.2.1:6443
    certificate-authority: ca.crt
    certificate-authority-data: null
    tls-server-name: kubernetes
users:
- name: me
  user:
    client-key-data: {SECRET}
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: bin/login
      args: [--quiet]
      env: [{{name: REGION, value: eu}}]
      installHint: install it
      provideClusterInfo: true
"""


def parsed(text: str) -> Kubeconfig:
    return parse_kubeconfig(PATH, text.encode())


def document(**changes: Any) -> dict[str, Any]:
    return {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1"}}],
        "users": [{"name": "u", "user": {"token": SECRET}}],
        **changes,
    }


def refusal(text: str) -> str:
    """The one line by which it is refused."""
    with pytest.raises(PermanentError) as caught:
        parsed(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{PATH}: ")
    return str(caught.value).removeprefix(f"{PATH}: ")


def test_the_current_context_is_what_counts() -> None:
    config = parsed(YAML)
    assert (config.cluster.server, config.cluster.tls_server_name) == ("https://192.0.2.1:6443", "kubernetes")
    assert (config.cluster.certificate_authority, config.cluster.certificate_authority_data) == ("ca.crt", "")
    assert config.user.client_key_data == SECRET
    plugin = config.user.exec
    assert plugin is not None
    assert (plugin.command, plugin.args, plugin.env[0].value) == ("bin/login", ["--quiet"], "eu")
    assert (plugin.api_version, plugin.install_hint) == ("client.authentication.k8s.io/v1beta1", "install it")
    assert plugin.provide_cluster_info


def test_relative_paths_are_beside_the_file() -> None:
    config = parsed(YAML)
    assert config.beside("bin/login") == "/etc/kubernetes/bin/login"
    assert config.beside("/usr/bin/login") == "/usr/bin/login"


def test_a_context_without_a_user_is_nobody_s() -> None:
    config = parsed(json.dumps(document(contexts=[{"name": "x", "context": {"cluster": "c"}}])))
    assert config.user == User()


def test_nothing_secret_is_shown() -> None:
    assert SECRET not in repr(parsed(YAML))
    assert SECRET not in repr(parsed(json.dumps(document())).user)
    structs = [kind for kind in vars(kubeconfig).values() if isinstance(kind, type(msgspec.Struct))]
    assert len(structs) >= 9
    for kind in structs:
        fields = [field.name for field in msgspec.structs.fields(kind)]
        assert SECRET not in repr(kind(**dict.fromkeys(fields, SECRET))), kind.__name__


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("\0", "this is not YAML"),
        ("just text", "expected `object`, got `str`"),
        ("[]", "expected `object`, got `array`"),
        ("a: [", "line 1, column 5: this is not YAML"),
        (f"token: {SECRET}\nkey: {{{SECRET}: [", "this is not YAML"),
        (f"token: *{SECRET}", "line 1, column 8: this is not YAML"),
        (f"token: !!timestamp {SECRET}", "this is not YAML"),
        ("[" * 100_000, "this is not YAML"),
        ("a: &a [*a]", "this is not YAML"),
        ("{}", "current-context is missing"),
        ("---\n---\na: b", "current-context is missing"),
        ("kind: Secret\napiVersion: v1", "this is no kubeconfig: it is a 'Secret' of 'v1'"),
        ('{"current-context": "x", "contexts": 5}', "contexts: expected `array`, got `int`"),
        ('{"current-context": "x"}', "there is no context named 'x' in contexts"),
    ],
)
def test_what_is_no_kubeconfig_is_refused_in_one_line(text: str, reason: str) -> None:
    assert reason in refusal(text)


def test_one_that_is_half_written_is_refused() -> None:
    text = json.dumps(document())
    for length in range(len(text)):
        assert refusal(text[:length])


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ({"token": 5}, "users[name=u].user.token: expected `str`, got `int`"),
        ({"exec": {"command": "x"}}, "users[name=u].user.exec: object missing required field `apiVersion`"),
        (
            {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}},
            "v1alpha1' is not one of",
        ),
        (
            {"exec": {"command": "", "apiVersion": "client.authentication.k8s.io/v1"}},
            "exec.command is missing",
        ),
        ({"as-groups": ["a"]}, "users[name=u].user: as-groups is set and as is not"),
        ({"as": "a", "as-user-extra": {"k": SECRET}}, "as-user-extra[...]: expected `array`, got `str`"),
        ({"exec": [SECRET]}, "users[name=u].user.exec: expected `object | null`, got `array`"),
    ],
)
def test_what_is_wrong_with_a_user_is_named(user: dict[str, Any], reason: str) -> None:
    assert reason in refusal(json.dumps(document(users=[{"name": "u", "user": user}])))


@pytest.mark.parametrize(
    ("mode", "reason"), [("Always", "there is no terminal"), ("Perhaps", "is not known")]
)
def test_a_plugin_that_must_ask_somebody_is_refused(mode: str, reason: str) -> None:
    plugin = {"command": "x", "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": mode}
    assert reason in refusal(json.dumps(document(users=[{"name": "u", "user": {"exec": plugin}}])))


@pytest.mark.parametrize("kind", ["cluster", "user"])
def test_what_a_context_names_must_be_there(kind: str) -> None:
    assert f"there is no {kind} named" in refusal(json.dumps(document(**{f"{kind}s": []})))


@pytest.mark.parametrize("authority", ["certificate-authority", "certificate-authority-data"])
def test_kubeconfig_insecure_with_an_authority_is_refused(authority: str) -> None:
    cluster = {"server": "https://192.0.2.1", "insecure-skip-tls-verify": True, authority: SECRET}
    said = refusal(json.dumps(document(clusters=[{"name": "c", "cluster": cluster}])))
    assert said.startswith(f"clusters[name=c].cluster: insecure-skip-tls-verify is true beside {authority}: ")
    del cluster["insecure-skip-tls-verify"]
    assert parsed(json.dumps(document(clusters=[{"name": "c", "cluster": cluster}]))).cluster


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ({"token": SECRET, "password": SECRET}, "token and username or password exclude each other"),
        (
            {
                "exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1"},
                "auth-provider": {"name": "oidc"},
            },
            "exec and auth-provider exclude each other",
        ),
    ],
)
def test_user_with_credentials_that_contradict_is_refused(user: dict[str, Any], reason: str) -> None:
    said = refusal(json.dumps(document(users=[{"name": "u", "user": user}])))
    assert said.startswith(f"users[name=u].user: {reason}")


@pytest.mark.parametrize("kind", ["cluster", "context", "user"])
def test_name_that_is_there_twice_is_refused(kind: str) -> None:
    twice = document()
    twice[f"{kind}s"] *= 2
    assert refusal(json.dumps(twice)).startswith(f"{kind}s: the name ")


# Shapes from the field: tests/data/kubeconfigs, with what kubectl does with each in expected.json.

EXPECTED: dict[str, dict[str, Any]] = json.loads(kubectl.EXPECTED.read_text())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sections say the same: null is nothing, and data may be broken into lines."""
    first, second = (
        {k: "".join(v.split()) if k.endswith("-data") else v for k, v in section.items() if v and k != "exec"}
        for section in (one, other)
    )
    return first == second


def used(shape: str) -> Kubeconfig:
    """What an agent would use. Raises PermanentError."""
    with closing(Sessions(str(kubectl.SHAPES / shape), "", print)) as sessions:
        assert sessions.access.kubeconfig is not None
        return sessions.access.kubeconfig


def test_shapes_are_all_expected() -> None:
    assert sorted(EXPECTED) == kubectl.shapes()
    for shape, expected in EXPECTED.items():
        assert "kg" not in expected or expected["why"], shape


@pytest.mark.parametrize("shape", sorted(EXPECTED))
def test_shape_is_loaded_where_kubectl_loads_it(shape: str) -> None:
    expected = EXPECTED[shape]
    if expected.get("kg", expected["kubectl"]) != "loads":
        with pytest.raises(PermanentError, match=re.escape(str(kubectl.SHAPES))):
            used(shape)
        return
    found = used(shape)
    if expected["kubectl"] == "loads":
        assert same(msgspec.to_builtins(found.cluster), expected["cluster"])
        assert same(msgspec.to_builtins(found.user), expected["user"])
        assert (found.user.exec is None) is (expected["user"].get("exec") is None)
