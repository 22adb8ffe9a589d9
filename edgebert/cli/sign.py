"""`edgebert sign`: signs a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import force_option, json_option, print_json, say_next


@click.command(name="sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--private-key", type=click.Path(path_type=Path), required=True, help="The key, in PEM.")
@click.option("--password-file", type=click.Path(path_type=Path), help="A file with the key's password, if it has one.")
@click.option(
    "--signature",
    type=click.Path(path_type=Path),
    help="Where the signature goes.  [default: model.sig in the bundle, with which it travels]",
)
@force_option
@json_option
def command(
    bundle: Path, private_key: Path, password_file: Path | None, signature: Path | None, force: bool, as_json: bool
) -> None:
    """Sign every file of a bundle, so that verify --public-key notices any change, whoever made it.

    The key is an elliptic curve key. To make one, and the public half for those who check:

    \b
      openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem
      openssl pkey -in KEY.pem -pubout -out KEY.pub.pem

    The signature has the format of OpenSSF Model Signing: model_signing verify key reads it too. An edited model card
    counts as a change; a tuned or quantized bundle is a new one, which is not signed.
    """  # noqa: D301  # \b is click's
    from edgebert.signing import sign_bundle

    signed = sign_bundle(bundle, private_key, password_file=password_file, signature=signature, force=force)
    if as_json:
        facts = {"schema": "edgebert.sign/1", "bundle": str(bundle), "signature": str(signed.path)}
        print_json({**facts, "key": signed.key, "files": signed.files})
    else:
        click.echo(f"{signed.path}: signs the {signed.files} files of {bundle} by the key with sha256 {signed.key}")
    elsewhere = f" --signature {signature}" if signature else ""
    say_next(f"edgebert verify {bundle} --public-key KEY.pub.pem{elsewhere}")
