"""An artifact in a store: the same files under the same names as in a folder, its manifest put there last.

With --overwrite the new one is made beside, in `.NAME.new/`. Once that has a manifest it is the artifact, for every
reader; its files are then copied to their place, which a kill may interrupt and any later writer finishes.
"""

import shutil
from typing import NamedTuple

from pipelines.files.published import bring, keep, unfinished_plan
from pipelines.files.working_folder import WorkingFolder, home
from pipelines.plan import MANIFEST, PLAN, UNFINISHED, Manifest, Part, Plan, read_model, receipt_name, stale
from pipelines.storage import Store
from vae_core.errors import Damaged, Misuse, Unfinished


class Begun(NamedTuple):
    """Where an artifact is to be made, and its manifest if it is complete already."""

    folder: WorkingFolder
    manifest: Manifest | None


def open_stored(uri: str) -> tuple[WorkingFolder, Manifest]:
    """The artifact at `uri`, with the files that are not one of many brought here.

    Raises Misuse where there is none, Unfinished where it is not complete, and Damaged.
    """
    for store in (_beside(uri), Store.at(uri)):
        content = store.read(MANIFEST)
        if content is not None:
            manifest = read_model(content, f"{store.uri}/{MANIFEST}", Manifest)
            folder = WorkingFolder(store.uri, manifest.fingerprint)
            keep(folder.path / MANIFEST, content)
            bring(folder)
            return folder, manifest
    begun = unfinished_plan(Store.at(uri))
    if begun is not None:
        raise Unfinished(f"{uri} holds unfinished {begun.kind}; run the same command again to finish it")
    if Store.at(uri).holds_anything():
        raise Misuse(f"{uri} has no {MANIFEST}: it is not a latentbits artifact")
    raise Misuse(f"there is nothing at {uri}; give the address that a latentbits stage wrote to")


def begin_stored(uri: str, plan: Plan, *, overwrite: bool) -> Begun:
    """Where the artifact that `plan` describes is made, or is complete already; as `artifact.begin`."""
    finish_swap(uri)
    store = Store.at(uri)
    found = _found(store)
    if isinstance(found, Manifest) and found.fingerprint == plan.fingerprint:
        return _checked(WorkingFolder(uri, plan.fingerprint), plan, found, thorough=overwrite)
    if found is not None and found.fingerprint != plan.fingerprint and not overwrite:
        raise stale(uri, found, plan)
    if found is None and any(not name.startswith(f"{UNFINISHED}/") for name in store.sizes()):
        raise Misuse(f"{uri} holds files that latentbits did not write; give another address")
    place = _beside(uri) if isinstance(found, Manifest) else store
    return Begun(WorkingFolder(place.uri, plan.fingerprint), None)


def begin_in(folder: WorkingFolder, plan: Plan) -> None:
    """Make the working folder ready, and delete from the store what another plan left unfinished there."""
    known = unfinished_plan(folder.store)
    if known is not None and known.fingerprint != plan.fingerprint:
        _discard(folder.store)
    scratch = folder.path / UNFINISHED
    scratch.mkdir(parents=True, exist_ok=True)
    (folder.path / MANIFEST).unlink(missing_ok=True)
    text = plan.model_dump_json(indent=1).encode()
    keep(folder.path / PLAN, text)
    folder.store.write(PLAN, text)


def complete(folder: WorkingFolder, target: str, manifest: Manifest) -> WorkingFolder:
    """Put the manifest into the store, which makes the artifact complete there, and put it in its place.

    Raises Damaged where a part is missing in the store.
    """
    sizes = folder.store.sizes()
    for part in manifest.parts:
        if sizes.get(part.name) != part.bytes:
            raise Damaged(
                f"{folder.uri}/{part.name} has {sizes.get(part.name, 'no')} bytes and was written with {part.bytes}; "
                f"run the same command again"
            )
    text = manifest.model_dump_json(indent=1).encode()
    folder.store.write(MANIFEST, text)
    folder.store.delete_folder(UNFINISHED)
    keep(folder.path / MANIFEST, text)
    shutil.rmtree(folder.path / UNFINISHED, ignore_errors=True)
    finish_swap(target)
    done = WorkingFolder(target, manifest.fingerprint)
    if done.path != folder.path:
        shutil.rmtree(done.path, ignore_errors=True)
        folder.path.replace(done.path)
    for older in home(target).glob("@*"):
        if older != done.path:
            shutil.rmtree(older, ignore_errors=True)
    return done


def finish_swap(uri: str) -> None:
    """Put a complete new artifact in the place of the one at `uri`; also finishes a swap that was killed half-way."""
    new, store = _beside(uri), Store.at(uri)
    content = new.read(MANIFEST)
    if content is None:
        left = new.sizes()
        if left and PLAN not in left:  # of a swap that was done but for this
            new.delete_folder()
        return
    manifest = read_model(content, f"{new.uri}/{MANIFEST}", Manifest)
    store.delete(MANIFEST)
    kept = {part.name for part in manifest.parts}
    store.delete(*(name for name in store.sizes() if name not in kept))
    for part in manifest.parts:
        new.copy(part.name, store, part.name)
    store.write(MANIFEST, content)
    new.delete(MANIFEST)
    new.delete_folder()


def verify_stored(folder: WorkingFolder, parts: tuple[Part, ...]) -> None:
    """Compare every byte in the store with its recorded checksum. Raises Damaged, naming the first that differs."""
    for part in parts:
        if reason := part_damage(folder.store, part):
            raise Damaged(f"{folder.uri}/{part.name} {reason}; run the stage that wrote it with --overwrite")


def part_damage(store: Store, part: Part) -> str | None:
    """What is wrong with a part in the store."""
    size = store.size(part.name)
    if size is None:
        return "is missing"
    if size != part.bytes:
        return f"has {size} bytes and was written with {part.bytes}"
    return None if store.checksum(part.name) == part.checksum else "has other bytes than were written"


def find_stored_part(folder: WorkingFolder, name: str) -> Part | None:
    """The part `name` if its receipt is in the store and its bytes, there or here, are those of the receipt."""
    content = folder.store.read(receipt_name(name))
    if content is None:
        return None
    part = read_model(content, f"{folder.uri}/{receipt_name(name)}", Part)
    return None if part_damage(folder.store, part) else part


def _found(store: Store) -> Plan | None:
    content = store.read(MANIFEST)
    if content is not None:
        return read_model(content, f"{store.uri}/{MANIFEST}", Manifest)
    return unfinished_plan(store)


def _checked(folder: WorkingFolder, plan: Plan, manifest: Manifest, *, thorough: bool) -> Begun:
    """A complete artifact, or where parts were lost an unfinished one, of which only those are to be made anew."""
    sizes = folder.store.sizes()
    whole = [
        part
        for part in manifest.parts
        if sizes.get(part.name) == part.bytes and not (thorough and part_damage(folder.store, part))
    ]
    if len(whole) == len(manifest.parts):
        if any(name.startswith(f"{UNFINISHED}/") for name in sizes):
            folder.store.delete_folder(UNFINISHED)
        keep(folder.path / MANIFEST, manifest.model_dump_json(indent=1).encode())
        bring(folder)
        return Begun(folder, manifest)
    folder.store.write(PLAN, plan.model_dump_json(indent=1).encode())
    for part in whole:
        folder.store.write(receipt_name(part.name), part.model_dump_json().encode())
    folder.store.delete(MANIFEST)
    (folder.path / MANIFEST).unlink(missing_ok=True)
    return Begun(folder, None)


def _discard(store: Store) -> None:
    """Delete an unfinished artifact, its plan last: none of its parts may be left for another plan after a kill."""
    store.delete(*(name for name in store.sizes() if name != PLAN))
    store.delete(PLAN)


def _beside(uri: str) -> Store:
    """Where the artifact that is to replace the one at `uri` lies."""
    parent, _, name = uri.rpartition("/")
    if parent.endswith("/"):
        raise Misuse(f"{uri} is a whole bucket; give a folder in it")
    return Store.at(f"{parent}/.{name}.new")
