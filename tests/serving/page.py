"""The command blocks of a page like docs/serving.md, and an environment to run them in."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
ROLES = ("run", "run: vllm", "server", "server: vllm")
"""What the comment before a block may say, besides `not run: REASON`."""
PORT = "8000"
_BLOCK = re.compile(
    r"^(?:<!-- (?P<role>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_PROGRAMS = {"spectrim": "spectrim.cli", "transformers": "transformers.cli.transformers"}


@dataclass(frozen=True)
class Block:
    section: str
    role: str | None
    language: str
    text: str

    def replaced(self, old: str, new: str) -> Block:
        assert old in self.text, self
        return replace(self, text=self.text.replace(old, new))


def blocks(page: Path = PAGE) -> list[Block]:
    found = []
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title = section.partition("\n")[0]
        found += [Block(title, *match.groups()) for match in _BLOCK.finditer(section)]
    return found


def section(title: str, *roles: str) -> list[Block]:
    """The blocks under a heading with one of the roles; at least one."""
    chosen = [block for block in blocks() if block.section == title and block.role in roles]
    assert chosen, (title, roles)
    return chosen


@dataclass(frozen=True)
class Environment:
    """A Python environment of its own and the directory in which commands are run."""

    programs: Path
    directory: Path

    def variables(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return inherited | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.directory / "home"),
        }

    def run(self, block: Block, port: int | None = None) -> str:
        """What the block prints; it has to succeed."""
        text = block.text if port is None else block.text.replace(PORT, str(port))
        if block.language == "sh":
            return self.output_of(text)
        script = self.directory / "block.py"
        script.write_text(text)
        return self.output_of(f"python {script}")

    def output_of(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=self.directory,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout


def own_environment(root: Path) -> Environment:
    """One that sees this interpreter's packages and has a site-packages of its own, so that
    `spectrim activate` changes nothing outside of it."""
    venv.create(root / "env", symlinks=True)
    programs = root / "env" / "bin"
    [packages] = (root / "env").glob("lib/python*/site-packages")
    outer = sysconfig.get_path("purelib")
    (packages / "outer.pth").write_text(f"{ROOT}\n{outer}\n")
    for name, module in _PROGRAMS.items():
        program = programs / name
        program.write_text(f"#!{programs / 'python'}\nfrom {module} import main\nmain()\n")
        program.chmod(0o755)
    (root / "work").mkdir()
    return Environment(programs, root / "work")
