"""Kinds of encoders that packages on this machine offer, and which of them may run here (docs/encoders.md).

A plan can only name a kind. Its code is what the institution's engineer installed, under the entry point group
`consilium.encoders`, and allowed in policy.toml by distribution and version, and by a hash of its files where that is
wanted. Nothing of a package is imported before its distribution was found to be allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from federation.plan import Plan
from federation.plan_encoders import MLP, EncoderTensor
from institution_node.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

GROUP: Final = "consilium.encoders"

EncoderFactory = Callable[[int, int, Mapping[str, float | str]], "nn.Module"]
"""Number of inputs, encoding width, the plan's options → a module of patients × inputs to patients × width."""

Encoders = Mapping[str, EncoderFactory]
"""Kind to its factory."""

NO_ENCODERS: Final[Encoders] = MappingProxyType({})

_UNCHECKED: Final = b"\x01\x00\x00\x00"
"""Flags of a compiled file that Python runs whatever its source says (PEP 552)."""

PIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+(?:@sha256:[0-9a-f]{64})?")
"""`my-encoders==1.2.0`, or `my-encoders==1.2.0@sha256:…`."""


@dataclass(frozen=True)
class InstalledKind:
    """A kind that a package on this machine offers.

    Attributes:
        kind: its name, as plans write it.
        distribution: of the package, normalised.
        version: of the distribution.
    """

    kind: str
    distribution: str
    version: str

    @property
    def pin(self) -> str:
        """How policy.toml allows it."""
        return f"{self.distribution}=={self.version}"

    def allowed_by(self, pins: Collection[str]) -> bool:
        """Whether a policy names this distribution and version, whatever hash it asks for."""
        return any(_normal(pin.partition("@")[0]) == self.pin for pin in pins)


def installed_kinds() -> tuple[InstalledKind, ...]:
    """All kinds on this machine, without importing any of them."""
    found = {_installed(point) for point in entry_points(group=GROUP)}
    return tuple(sorted((kind for kind in found if kind is not None), key=lambda k: (k.kind, k.pin)))


def files_digest(installed: InstalledKind) -> str:
    """SHA-256, 64 hex digits, over a distribution's entry points, and names and bytes of its files to import.

    Raises:
        EncoderError: its files are not known: it was installed in place, or not by pip.
    """
    return _digest(installed)[0]


def _digest(installed: InstalledKind) -> tuple[str, frozenset[Path]]:
    """`files_digest`, and the files that it covers."""
    try:
        made = distribution(installed.distribution)
    except PackageNotFoundError:
        raise EncoderError(f"{installed.pin} is not installed any more.", remedy="Install it again.") from None
    # Which object of which module a kind is stands in the notes beside the code.
    points = sorted(f"{p.name} = {p.value}" for p in made.entry_points if p.group == GROUP)
    parts, covered = ["\n".join(points).encode()], set[Path]()
    for file in sorted(made.files or (), key=str):
        path = Path(str(made.locate_file(file)))
        if "__pycache__" in path.parts:
            if path.is_file() and path.read_bytes()[4:8] == _UNCHECKED:
                raise EncoderError(
                    f"{installed.pin} brings compiled code that Python would not hold against its source ({file}).",
                    remedy="Have it built without compiled files, or delete them.",
                    place=installed.pin,
                )
        elif not (file.parts[0] == ".." or _notes(file.parts[0])):  # pip puts commands into ../../bin, with local paths
            parts += [str(file).encode(), path.read_bytes()]
            covered.add(path.resolve())
    if not any(path.suffix == ".py" for path in covered):
        raise EncoderError(
            f"the files of {installed.pin} are not listed.",
            remedy="Install it with pip from a folder or wheel, and not `--editable`, where a hash is asked for.",
            place=installed.pin,
        )
    hashed = hashlib.sha256(b"consilium/v2/encoder-files")
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest(), frozenset(covered)


def kinds_of(plan: Plan, institution: str) -> dict[str, tuple[str, ...]]:
    """Kinds, other than the one that every release has, that an institution needs: each to its modalities."""
    found: dict[str, list[str]] = {}
    held = plan.institution(institution).modalities
    for modality in plan.modalities:
        if modality.kind != MLP and modality.name in held:
            found.setdefault(modality.kind, []).append(modality.name)
    return {kind: tuple(modalities) for kind, modalities in found.items()}


def load_encoders(kinds: Iterable[str], pins: Collection[str]) -> dict[str, EncoderFactory]:
    """Imports kinds that are installed and allowed.

    Args:
        kinds: names, as plans write them.
        pins: of `policy.toml`'s `allow_encoders`.

    Raises:
        EncoderError: one is not installed, not allowed, allowed twice, of other files than its hash says, or its
            import failed.
    """
    return {kind: _load(kind, pins) for kind in kinds}


def shown_kinds(kinds: Iterable[InstalledKind]) -> Iterator[str]:
    """Lines for people: each kind with its two pins."""
    none = True
    for installed in kinds:
        none = False
        yield f'{installed.kind}  "{installed.pin}"'
        try:
            yield f'{"":<{len(installed.kind)}}  "{installed.pin}@sha256:{files_digest(installed)}"'
        except EncoderError as error:
            yield f"{'':<{len(installed.kind)}}  {error.message} {error.remedy}"
    if none:
        yield f"no package on this machine offers encoders (entry points of the group {GROUP!r})."


def read_options(texts: Iterable[str]) -> dict[str, float | str]:
    """`name=value` each; a value that reads as a number is one.

    Raises:
        EncoderError: no such text.
    """
    found: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise EncoderError(f"{text!r} is no option.", remedy="Write --option name=value.")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def plan_lines(kind: str, options: Mapping[str, float | str], tensors: Iterable[EncoderTensor]) -> Iterator[str]:
    """What stands in a plan's `[[modalities]]` for an encoder."""
    yield f'kind = "{kind}"'
    if options:
        yield "options = ["
        for name, value in options.items():
            told = f"number = {value:g}" if isinstance(value, float) else f"text = {json.dumps(value)}"
            yield f'  {{ name = "{name}", {told} }},'
        yield "]"
    yield "tensors = ["
    for tensor in tensors:
        fan_in = f", fan_in = {tensor.fan_in}" if tensor.init == "uniform_fan_in" else ""
        yield f'  {{ name = "{tensor.name}", shape = {list(tensor.shape)}, init = "{tensor.init}"{fan_in} }},'
    yield "]"


def _load(kind: str, pins: Collection[str]) -> EncoderFactory:
    points = {made: point for point in entry_points(group=GROUP, name=kind) if (made := _installed(point)) is not None}
    if not points:
        raise EncoderError(
            f"no package on this machine offers the encoder {kind!r}.",
            remedy="Install the package that the plan's author names, review it, and allow it in policy.toml.",
            place=kind,
        )
    allowed = [made for made in points if made.allowed_by(pins)]
    if not allowed:
        offered = " or ".join(f'"{made.pin}"' for made in points)
        raise EncoderError(
            f"policy.toml does not allow the encoder {kind!r}.",
            remedy=f"Review the package, then add {offered} to allow_encoders in policy.toml.",
            place=kind,
        )
    if len(allowed) > 1:
        raise EncoderError(
            f"{' and '.join(made.pin for made in allowed)} both offer the encoder {kind!r}.",
            remedy="Allow one of them in policy.toml.",
            place=kind,
        )
    chosen = allowed[0]
    wanted = {pin.partition("@sha256:")[2] for pin in pins if _normal(pin.partition("@")[0]) == chosen.pin} - {""}
    if wanted:
        found, covered = _digest(chosen)
        if found not in wanted:
            raise EncoderError(
                f"the files of {chosen.pin} are not those that policy.toml names.",
                remedy="Install the version that was reviewed; `consilium-node encoders` shows what is there now.",
                place=kind,
            )
        origin = _origin(points[chosen].module)
        if origin not in covered:
            raise EncoderError(
                f"{points[chosen].module} is imported from {origin or 'nowhere'}, which is not of {chosen.pin}.",
                remedy="Rename what stands in its way on Python's path, or start the node from another folder.",
                place=kind,
            )
    try:
        factory: Any = points[chosen].load()
    except Exception as error:  # the package's own code
        raise EncoderError(
            f"{chosen.pin} cannot be imported: {type(error).__name__}: {str(error)[:200]}.",
            remedy="Mend the package or its dependencies.",
            place=kind,
        ) from error
    made_by: EncoderFactory = factory
    return made_by


def _installed(point: EntryPoint) -> InstalledKind | None:
    made: Distribution | None = point.dist
    return None if made is None else InstalledKind(point.name, _normal(made.metadata["Name"]), made.version)


def _origin(module: str) -> Path | None:
    """The file that a module, or the package that it is in, would be imported from, importing neither."""
    names = module.split(".")
    for k in range(1, len(names) + 1):
        spec = find_spec(".".join(names[:k]))  # of a namespace, which runs nothing, the next one
        if spec is None:
            return None
        if spec.origin is not None:
            return Path(spec.origin).resolve()
    return None


def _normal(name: str) -> str:
    """A distribution's name as packaging tools compare it; a pin's version stays as it is."""
    distribution_name, pinned, version = name.partition("==")
    return re.sub(r"[-_.]+", "-", distribution_name).lower() + pinned + version


def _notes(folder: str) -> bool:
    """What pip writes beside the code: other on every machine."""
    return folder.endswith((".dist-info", ".egg-info"))
