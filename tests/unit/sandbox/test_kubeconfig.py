"""What a kubeconfig names, read before anybody has said that it is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilo.sandbox.kubeconfig import Named, named_by

FILE = """
clusters:
- name: one
  cluster: {certificate-authority: ca.crt, server: https://203.0.113.1}
users:
- name: a
  user: {client-certificate: /pki/a.crt, client-key: pki/a.key, tokenFile: token}
- name: b
  user: {exec: {command: %s}}
"""


@pytest.mark.parametrize(
    "command, plugin", [("aws", "aws"), ("bin/get", "DIRECTORY/bin/get"), ("/bin/x", "/bin/x")]
)
def test_files_are_beside_it_and_a_bare_command_is_on_path(tmp_path: Path, command: str, plugin: str) -> None:
    path = tmp_path / "config"
    path.write_text(FILE % command)
    here = str(tmp_path)
    files = (str(path), f"{here}/ca.crt", "/pki/a.crt", f"{here}/pki/a.key", f"{here}/token")
    assert named_by(str(path)) == Named(files, plugin.replace("DIRECTORY", here))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "a: [",
        "- x",
        "users: 5",
        "users: [5, {user: 5}]",
        "users: [{user: {exec: 3}}]",
        "a: " + "[" * 5000,
    ],
)
def test_what_is_no_kubeconfig_names_only_itself(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    assert named_by(str(path)) == Named((str(path),))


def test_named_by_file_of_several_documents_and_tabs_names_its_files(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users:\n- user:\t{tokenFile: token}\n---\n")
    assert named_by(str(path)) == Named((str(path), str(tmp_path / "token")))


def test_one_that_is_not_there(tmp_path: Path) -> None:
    assert named_by(str(tmp_path / "none")).files == (str(tmp_path / "none"),)
