"""Four kernel folders and a dataset folder for Kaggle's client: `python -m tools.kaggle params/kaggle-t4 USER build`.

Kaggle passes no parameters, so each notebook gets its profile's values injected as papermill injects them; the package
and the files a profile names travel as a dataset. Other people's datasets can be attached beside it: so each notebook
holds the hash of this one, and takes no other package (`attached`), and the dataset a key of the user's, by which a
session knows the outputs of earlier ones (`seals`). A stage asks for a GPU only if it uses one, so that no quota is
spent on waiting for a server. Nothing is sent: what to type is printed.
"""

import json
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

import nbformat
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook

from nbutils import judges, params, run
from nbutils.core import command
from nbutils.core.errors import InputError
from nbutils.core.markup import say
from nbutils.files import disk, owned, seals, sources
from tools import attached, client
from tools.client import DATASET, KERNEL

Plan = dict[str, dict[str, Any]]  # stem -> what is injected into its notebook

PACKAGE, STEPS = "package", "STEPS.txt"  # the dataset folder; what the user types, also the mark that a folder is ours
# two T4; what a push gets whatever it asks for: Kaggle's client lists the P100 as retired
MACHINE = "NvidiaTeslaT4"
LONGEST = 50  # characters of a title
UNSENT = (".git", ".cache", ".huggingface", DATASET)  # never uploaded, in whatever folder


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folders, check them with the client where it is installed, and print what to type."""
    parser = command.parser("tools.kaggle", __doc__)
    parser.add_argument("profile", type=Path, help="folder with one YAML of parameters per notebook")
    parser.add_argument("user", help="your name on Kaggle, as in the address of your profile page")
    parser.add_argument("out", type=Path, help="folder to write to, e.g. build/kaggle")
    given = parser.parse_args(arguments)
    folders = write(given.profile, given.user, given.out)
    if find_spec("kaggle") is None:
        say("not checked by Kaggle's client: it is not installed here (pip install 'kaggle>=2.2')")
    else:
        for folder in folders:
            client.check(folder)
        say(f"checked by Kaggle's client {import_module('kaggle').__version__}: {len(folders)} folders")
    say((given.out / STEPS).read_text(encoding="utf-8"))


def write(profile: Path, user: str, out: Path) -> list[Path]:
    """Write the dataset folder, the four kernel folders and what to type; return the five folders in that order.

    Folders of an earlier call are replaced, whatever else lies in `out` by then is left alone. A file in one of them
    that was put there or changed since is refused by name: it would be lost, or uploaded with the rest.

    Raises:
        InputError: if the profile, its parameters, a file they name or the user's name is wrong, or `out` holds
            something that this command did not write; before anything is written.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", user):
        raise InputError(f"USER is {user!r}, expected your name as in your Kaggle profile's address, e.g. maria-rossi")
    plan = run.read_profile(profile, Path(run.defaults(params.STEMS[0])["run_dir"]))
    complete: Plan = {stem: run.defaults(stem) | values for stem, values in plan.items()}
    carried = [path for stem in complete for path in named_files(stem, complete[stem])]
    kernels = {stem: _kernel(stem, complete, profile.resolve().name, user) for stem in complete}
    dataset = kernels["01_rerank"]["dataset_sources"][0]
    steps = _steps(out, kernels, complete)
    if out.exists() and not (out.is_dir() and ((out / STEPS).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and was not written by this command; name another folder or move it away")
    folders = [out / PACKAGE, *(out / stem for stem in plan)]
    known = owned.listed(out) or {}
    there = [f"{folder.name}/{name}" for folder in folders if folder.exists() for name in disk.entries(folder)]
    if others := [name for name in there if not owned.unchanged(out / name, known.get(name))]:
        raise InputError(f"{out} holds what this command did not write: {owned.some(others)}; move that away")
    try:
        key = _key(out / PACKAGE, user)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (out / STEPS).write_text(steps, encoding="utf-8")
        _write_package(out / PACKAGE, carried, dataset, key)
        cell = _package_cell(dataset, attached.digest(out / PACKAGE))
        for stem, values in plan.items():
            book = parameterize_notebook(load_notebook_node(str(run.notebook(stem))), values)
            place = next(i for i, there in enumerate(book.cells) if there.get("id") == "setup")
            book.cells.insert(place, nbformat.v4.new_code_cell(cell, id="package"))
            write_ipynb(book, str(out / stem / f"{stem}.ipynb"))
            _write_json(out / stem / KERNEL, kernels[stem])
        written = [f"{folder.name}/{name}" for folder in folders for name in disk.entries(folder)]
        owned.record(out, {name: disk.sha256(out / name) for name in written})
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror or error}); choose a writable folder") from None
    return folders


def needs_gpu(stem: str, values: Mapping[str, Any]) -> bool:
    """Return whether a stage uses a GPU: 04 trains, 02 samples unless a server does, a judge may be a model here."""
    if stem == "02_sample":
        return not urlsplit(values["engine"]).scheme
    if stem == "04_dpo":
        return True
    files = [judges.read_file(part)[1] for name in params.JUDGES for part in params.names(values.get(name, ""))]
    return any(file.kind == "reward" or (file.kind == "llm" and file.engine != "api") for file in files)


def named_files(stem: str, values: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files and folders that a stage's parameters name, relative to the checkout: they have to travel.

    The mounted dataset takes the place of the checkout, so a relative path means the same file there.

    Raises:
        InputError: if a file is not there, lies outside the checkout, or is a model inside a Python package.
    """
    for name, part in params.inputs(stem, values):
        what = f"{stem}, {name}"
        if name in params.JUDGES:
            for kind, thing in judges.brings(part):
                yield from _travels(f"{what} {part}", thing, must_exist=kind == "file")
        elif part not in params.STEMS:
            yield from _travels(what, part, must_exist=name == "training")


def _kernel(stem: str, complete: Plan, profile: str, user: str) -> dict[str, Any]:
    """Return a kernel's metadata. Its title is made from its slug: made the other way round they could differ."""
    values = complete[stem]
    gpu = needs_gpu(stem, values)
    before = sorted({part for _, part in params.inputs(stem, values) if part in params.STEMS})
    return {
        "id": f"{user}/{_slug(profile, stem)}",
        "title": _slug(profile, stem).replace("-", " "),
        "code_file": f"{stem}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": True,
        **({"machine_shape": MACHINE} if gpu else {}),
        "dataset_sources": [f"{user}/{_slug(profile, PACKAGE)}"],
        "competition_sources": [],
        "kernel_sources": [f"{user}/{_slug(profile, other)}" for other in before],
        "model_sources": [],
    }


def _slug(profile: str, part: str) -> str:
    """Return the last part of an address on Kaggle, e.g. nbutils-kaggle-t4-01-rerank."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"nbutils {profile} {part}".lower()).strip("-")
    if len(slug) > LONGEST:
        raise InputError(f"{slug} is longer than the {LONGEST} characters of a title; give the profile a shorter name")
    return slug


def _key(package: Path, user: str) -> str:
    """Return the key of the package that an earlier call wrote for this user, or a new one."""
    try:
        before = json.loads((package / DATASET).read_text(encoding="utf-8"))["id"].partition("/")[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        before = ""
    known = seals.read_key(package / seals.KEY_FILE.name) if before == user else b""
    return known.decode() or secrets.token_hex(32)


def _package_cell(dataset: str, sha256: str) -> str:
    """Return the code that looks for the package with this hash before anything of it is installed or run."""
    code = Path(attached.__file__).read_text(encoding="utf-8")
    return f'{code}\n\nos.environ["NBUTILS_SOURCE"] = attached(\n    "{dataset}",\n    "{sha256}",\n)'


def _write_package(folder: Path, carried: Sequence[Path], identity: str, key: str) -> None:
    package = Path(str(resources.files("nbutils")))
    shutil.copytree(package, folder / "nbutils", ignore=shutil.ignore_patterns("__pycache__"))
    for path in {Path("requirements.txt"), Path("LICENSE"), *carried}:
        source, target = sources.CHECKOUT / path, folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            # what Kaggle's client leaves out, the hash must not hold
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*UNSENT), dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    (folder / seals.KEY_FILE.name).write_text(key + "\n", encoding="ascii")
    facts = {
        "id": identity,
        "title": identity.partition("/")[2].replace("-", " "),
        "subtitle": "The package of four preference-tuning notebooks",
        "licenses": [{"name": "other"}],  # the package's stands beside it; what a profile names may have another
    }
    _write_json(folder / DATASET, facts)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _travels(what: str, name: str, *, must_exist: bool = False) -> Iterator[Path]:
    """Yield the path behind a name relative to the checkout, nothing for a Hub id."""
    if name.startswith("package:"):
        raise InputError(f"{what}: {name} is a Python package that Kaggle does not have; name a Hub id")
    path, root = sources.find(name), sources.CHECKOUT.resolve()
    if path is None:
        if must_exist or name.startswith((".", "/", "~")) or name.endswith((*sources.FILE_TYPES, *sources.PACKED)):
            raise InputError(f"{what}: there is no file or folder {name}; check the path (relative to {root})")
    elif Path(name).is_absolute() or path != (root / name).resolve() or not path.is_relative_to(root):
        raise InputError(f"{what}: {name} cannot travel; put it into {root} and name it relative to there")
    else:
        yield path.relative_to(root)


def _secrets(stem: str, values: Mapping[str, Any]) -> set[str]:
    """Return the names of the tokens a stage cannot do without."""
    wanted = {"HF_TOKEN"} if values["push_to_hub"] else set()
    asked = "" if stem == "02_sample" else values.get("eval_judge") or values["judge"]
    return wanted | judges.key_variables([asked, values.get("second_judge", "")])


def _steps(out: Path, kernels: Mapping[str, dict[str, Any]], complete: Plan) -> str:
    """Return what the user types, in order."""
    tokens = {stem: _secrets(stem, values) for stem, values in complete.items()}
    dataset = kernels["01_rerank"]["dataset_sources"][0]
    on_gpu = [stem for stem in kernels if kernels[stem]["enable_gpu"]]
    lines = [
        f"On a GPU (T4 x2; Kaggle has retired the P100), from your weekly hours: {', '.join(on_gpu)}.",
        f"On a CPU: {', '.join(stem for stem in kernels if stem not in on_gpu) or 'none'}.",
        "",
        "Type all of this in this folder. Once: pip install 'kaggle>=2.2' (make has put it into .venv/bin) and",
        "sign in as its documentation says (kaggle auth login). Kaggle gives GPU and Internet to accounts with a",
        "verified phone.",
        "",
        "1. The package, as a private dataset; go on when its status is ready:",
        f"     kaggle datasets create -p {quote(str(out / PACKAGE))} --dir-mode zip",
        f"     kaggle datasets status {dataset}",
        "   It holds a key by which your sessions know their own outputs: keep it private, and keep this folder, for a",
        "   new key knows no old output. After a change, and 2 again, since the notebooks hold the package's hash:",
        f"     kaggle datasets version -p {quote(str(out / PACKAGE))} --dir-mode zip -m 'what changed'",
        "2. The notebooks, in this order. A push starts a run; wait until those it is `after` are complete:",
    ]
    for stem, kernel in kernels.items():
        notes = [f"after {name.partition('/')[2]}" for name in kernel["kernel_sources"]]
        notes += [f"stops early without {name}, see 3" for name in sorted(tokens[stem])]
        lines.append(
            f"     kaggle kernels push -p {quote(str(out / stem))}" + (f"  # {', '.join(notes)}" if notes else "")
        )
    for name in sorted(set().union(*tokens.values())):
        pages = [f"     https://www.kaggle.com/code/{kernels[s]['id']}/edit" for s in kernels if name in tokens[s]]
        lines += [
            f"3. The secret {name}: the client cannot attach it. After the first push open each of these in the",
            "   editor, attach it under Add-ons > Secrets, then Save Version > Save & Run All:",
            *pages,
            "   Whether a later push keeps it attached is not known: look before you pay for a run.",
        ]
    lines += ["How they are doing, and what they left:"]
    for kernel in kernels.values():
        slug = kernel["id"].partition("/")[2]
        lines.append(f"     kaggle kernels status {kernel['id']}")
        lines.append(f"     kaggle kernels output {kernel['id']} -p {Path('runs') / slug}")  # not in what is cleaned up
    lines += [
        "One that its time budget stopped: in the editor add its own output as an input, then Save & Run All again.",
        "Replies, reference numbers and checkpoints are taken over from there; nothing is asked for twice.",
    ]
    return "\n".join([*lines, "Nothing of this has been run on Kaggle by the authors yet.", ""])


if __name__ == "__main__":
    sys.exit(main())
