"""An API server as a process: ``python -m tests.apiserver --listen ADDR:PORT --kubeconfig FILE``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.apiserver import start_apiserver
from tests.apiserver.admin import Admin
from tests.apiserver.real import ADMIN, RealServer


def main() -> int:
    """Serve until SIGTERM or SIGINT; one line on standard output says when it is ready."""
    parser = argparse.ArgumentParser(prog="python -m tests.apiserver", description=main.__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDR:PORT")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig for agents here")
    parser.add_argument("--admin-kubeconfig", type=Path, help="and one that may do everything here")
    parser.add_argument(
        "--standin", action="store_true", help="the stand-in, also where a real one is installed"
    )
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="kg-apiserver-") as directory:
        server = start_apiserver(Path(directory), (host.strip("[]"), int(port)), options.standin)
        try:
            if options.kubeconfig:
                server.kubeconfig(options.kubeconfig)
            if options.admin_kubeconfig:
                if isinstance(server, RealServer):
                    server.kubeconfig(options.admin_kubeconfig, ADMIN)
                else:
                    server.kubeconfig(options.admin_kubeconfig)
                Admin.of(options.admin_kubeconfig).close()
            os.write(1, f"listening on {server.url}\n".encode())
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
