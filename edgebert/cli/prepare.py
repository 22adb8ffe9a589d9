"""`edgebert prepare`: lays a bundle's weights out for this machine."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import json_option, print_json, say_next


@click.command(name="prepare")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Hash what is prepared, and prepare nothing.")
@click.option("--force", is_flag=True, help="Prepare again.")
@click.option("--remove", is_flag=True, help="Remove what is prepared.")
@json_option
def command(bundle: Path, check: bool, force: bool, remove: bool, as_json: bool) -> None:
    """Lay a bundle's weights out for this machine, in a cache that loads faster and takes almost no memory.

    The cache is $EDGEBERT_CACHE, else edgebert in the user's cache folder. Whatever opens the bundle uses it from then
    on; an edited, tuned or moved bundle too, as long as its graphs are the same.
    """
    from edgebert.bundle import open_bundle
    from edgebert.errors import BundleError, ConfigError
    from edgebert.runtime.prepared import (
        check_prepared,
        find_prepared,
        prepare_bundle,
        prepared_folder,
        remove_prepared,
    )

    if check + force + remove > 1:
        raise ConfigError("--check, --force and --remove: hash, replace or remove what is prepared; give one of them.")
    opened = open_bundle(bundle)
    if remove:
        click.echo(f"{bundle}: {'removed' if remove_prepared(opened) else 'nothing was prepared'}")
        return
    prepared = find_prepared(opened) if check else prepare_bundle(opened, force=force)
    if prepared is None:
        raise BundleError(f"{prepared_folder(opened)}: nothing prepared, or changed; run: edgebert prepare {bundle}")
    if check:
        check_prepared(prepared)
    if as_json:
        facts = {"schema": "edgebert.prepare/1", "bundle": str(bundle), "folder": str(prepared.folder)}
        print_json({**facts, "graphs": len(prepared.graphs), "size_mb": prepared.size_bytes / 1e6})
        return
    click.echo(
        f"{bundle}: {len(prepared.graphs)} graphs {'are as they were ' if check else ''}prepared in {prepared.folder}, "
        f"{prepared.size_bytes / 1e6:.1f} MB"
    )
    say_next(f"edgebert run {bundle} TEXT")
