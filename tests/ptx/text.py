"""PTX as data: a kernel's parameters and its instructions, cut into blocks that lanes run without parting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .arithmetic import width

REGISTERS = {"%p": "pred", "%rs": "b16", "%r": "b32", "%rd": "b64"}
"""What the compiler names its registers, and their types."""

ENDS = {"bra", "ret", "exit", "bar", "atom", "red"}
"""Operations that are the last of their block: lanes part, wait, or let other programs go on."""

STATEMENT = re.compile(r"\s*(?:(?P<label>[$\w]+):|(?P<brace>[{}])|(?P<text>[^;]+);)")

WORDS = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^\s,]+")


@dataclass(frozen=True)
class Instruction:
    """One operation of all lanes, or of those whose predicate is as wanted."""

    name: str
    operands: tuple[str, ...]
    predicate: str = ""
    wanted: bool = True

    @property
    def parts(self) -> list[str]:
        """The operation, its modifiers and types."""
        return self.name.split(".")

    @property
    def gathers(self) -> bool:
        """Whether it is one operation of a whole warp, whose lanes wait for each other."""
        return "sync" in self.parts


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel."""

    parameters: dict[str, str]
    """The types of what it is given, by name."""
    types: dict[str, str]
    """Of registers that the compiler has not named."""
    blocks: list[list[Instruction]]
    """Instructions that are run one after the other, the last of which may say where to go from them."""
    labels: dict[str, int]
    """The numbers of the blocks that they stand before."""

    def type_of(self, register: str) -> str:
        """A register's type, by its name."""
        return self.types.get(register) or REGISTERS[register.rstrip("0123456789")]


def parse(ptx: str) -> Kernel:
    """The one kernel of a module."""
    text = re.sub(r"//.*|^\s*\.(?:loc|file|pragma).*|^\$L__(?:tmp|func).*", "", ptx, flags=re.MULTILINE)
    head, body = re.split(r"\)[^{]*\{", text.split(".entry", 1)[1], maxsplit=1)
    types: dict[str, str] = {}
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for statement in statements(body):
        if statement.endswith(":"):
            if blocks[-1]:
                blocks.append([])
            labels[statement[:-1]] = len(blocks) - 1
        elif statement.startswith(".reg"):
            _, kind, *names = WORDS.findall(statement)
            bits = "pred" if kind == ".pred" else f"b{width(kind[1:])}"
            types.update((name, bits) for name in names if "<" not in name)
        else:
            each = instruction(statement)
            if each.gathers and blocks[-1] and not any(earlier.gathers for earlier in blocks[-1]):
                blocks.append([])
            blocks[-1].append(each)
            if each.parts[0] in ENDS:
                blocks.append([])
    parameters = {name: kind for kind, name in re.findall(r"\.param \.(\w+).*?(\w+_param_\d+)", head)}
    return Kernel(parameters, types, blocks, labels)


def statements(body: str) -> Iterator[str]:
    """Declarations, labels and instructions, to the brace that ends the kernel; registers of inner scopes renamed."""
    scopes: list[tuple[int, set[str]]] = [(0, set())]
    opened = 0
    for match in STATEMENT.finditer(body):
        if match["brace"] == "{":
            opened += 1
            scopes.append((opened, set()))
        elif match["brace"]:
            scopes.pop()
            if not scopes:
                return
        elif match["label"]:
            yield f"{match['label']}:"
        else:
            text = " ".join(match["text"].split())
            if text.startswith(".reg") and len(scopes) > 1:
                scopes[-1][1].update(WORDS.findall(text)[2:])
            for number, names in reversed(scopes[1:]):
                for name in names:
                    text = re.sub(rf"(?<![\w%.$]){re.escape(name)}(?![\w.])", f"{name}_in_{number}", text)
            yield text


def instruction(statement: str) -> Instruction:
    """One instruction, from its text."""
    predicate, wanted = "", True
    if statement.startswith("@"):
        predicate, statement = statement[1:].split(" ", 1)
        wanted = not predicate.startswith("!")
    name, _, rest = statement.partition(" ")
    return Instruction(name, tuple(WORDS.findall(rest)), predicate.removeprefix("!"), wanted)
