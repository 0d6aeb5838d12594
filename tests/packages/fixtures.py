"""Fixtures of the tests that boot machines; conftest.py imports them beside `built`, the folder with the packages.

Each suite's root is made once, the package is installed in it once, and each test gets a copy of that of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.packages.machine import Machine
from tests.packages.roots import AGENT_NEEDS, BOOTABLE, Tree, cache_folder, root_of
from tests.packages.scene import Scene

SUITES = {"bookworm": ("rpm",), "trixie": ()}  # with what the tests of one suite want besides
bookworm = pytest.mark.parametrize("suite", ["bookworm"], indirect=True)  # where one release is enough
Boot = Callable[..., Machine]


@pytest.fixture(scope="session", params=tuple(SUITES))
def suite(request: pytest.FixtureRequest) -> str:
    """Debian's name of the release that the test is about."""
    return str(request.param)


@pytest.fixture(scope="session")
def deb(built: Path) -> Path:
    """The package for Debian."""
    (file,) = built.glob("*.deb")
    return file


@pytest.fixture(scope="session")
def root(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what the package depends on, without the package."""
    return root_of(cache_folder(tmp_path_factory), suite, [*BOOTABLE, *AGENT_NEEDS, *SUITES[suite]])


@pytest.fixture(scope="session")
def installed(
    suite: str, root: Path, deb: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, ...]]:
    """The layers of a root with the package in it and nothing configured."""
    with ExitStack() as stack:
        tree = _open_tree(stack, tmp_path_factory.mktemp(f"installed-{suite}"), (root,))
        machine = _boot(stack, tree, network=False)
        install(machine, deb)
        machine.poweroff()
        tree.seal()
        yield tree.layers


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Boots a machine on a copy of layers; every machine and every copy is gone at the end."""
    with ExitStack() as stack:

        def start(layers: tuple[Path, ...], **options) -> Machine:
            folder = tmp_path / f"machine-{len(list(tmp_path.iterdir()))}"
            return _boot(stack, _open_tree(stack, folder, layers), **options)

        yield start


@pytest.fixture
def machine(boot: Boot, installed: tuple[Path, ...]) -> Machine:
    """A machine with the package in it, not configured."""
    return boot(installed)


@pytest.fixture
def scene(machine: Machine, tmp_path: Path) -> Iterator[Scene]:
    """The same, and a hub outside that nobody has started yet."""
    made = Scene(machine, tmp_path / "hub")
    yield made
    made.close()


def install(machine: Machine, deb: Path, *options: str) -> str:
    """`apt-get install ./....deb` inside; what it has printed."""
    place = f"/root/{deb.name}"
    machine.run("install", "-D", "-m", "0644", "/dev/null", place)
    (machine.tree.path / place.lstrip("/")).write_bytes(deb.read_bytes())
    done = machine.run("apt-get", "install", "--yes", *options, f".{place}")
    return done.stdout + done.stderr


def _open_tree(stack: ExitStack, folder: Path, layers: tuple[Path, ...]) -> Tree:
    tree = Tree(folder, layers)
    stack.callback(tree.close)
    tree.open()
    return tree


def _boot(stack: ExitStack, tree: Tree, **options) -> Machine:
    machine = Machine(tree, **options)
    stack.callback(machine.close)
    machine.boot()
    return machine
