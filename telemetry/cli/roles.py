"""Commands of the distributed form: one role each, and the topics between them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from telemetry import logs
from telemetry.cli import EXIT_NO, Config, Json, State, Yes, app, confirm, print_table, settings_of
from telemetry.cli.operate import serve
from telemetry.config import Settings, load_settings
from telemetry.errors import ConfigError

if TYPE_CHECKING:
    from telemetry.brokers.kafka.topics import Topic
    from telemetry.run import Part

__all__: list[str] = []

AdminBind = Annotated[
    str | None, typer.Option("--admin-bind", help="host:port for health, metrics.")
]
Member = Annotated[
    str | None,
    typer.Option("--member", help="Name in its group, kept over restarts.", show_default="host"),
]


@app.command()
def gateway(
    *,
    config: Config = None,
    state: State = None,
    bind: Annotated[str | None, typer.Option(help="host:port for clients.")] = None,
    admin_bind: AdminBind = None,
) -> None:
    """Run a gateway alone: takes events, scrubs, seals identifiers, appends to Kafka.

    Needs of all keys the public ones: STATE/keys/public.json. Any number may run.

    Examples:

      telemetry gateway --config /etc/telemetry/gateway.toml
    """
    from telemetry.run import Part  # noqa: PLC0415 - help must not wait for the whole pipeline

    settings = settings_of(config, state, bind=bind, admin_bind=admin_bind)
    _run(settings, Part(gateway=True, pseudonymizer=False, forwards=()))


@app.command()
def pseudonymize(
    *,
    config: Config = None,
    state: State = None,
    admin_bind: AdminBind = None,
    member: Member = None,
) -> None:
    """Run a pseudonymizer alone: the only role with keys and vault. It reaches no recipient.

    Several share the partitions of the sealed topic.

    Examples:

      telemetry pseudonymize --config /etc/telemetry/pseudonymizer.toml --member pseudonymizer-0
    """
    from telemetry.run import Part  # noqa: PLC0415 - as above

    settings = _with_member(settings_of(config, state, admin_bind=admin_bind), member)
    _run(settings, Part(gateway=False, pseudonymizer=True, forwards=()))


@app.command()
def forward(
    recipient: str,
    *,
    config: Config = None,
    state: State = None,
    admin_bind: AdminBind = None,
    member: Member = None,
) -> None:
    """Run the forwarder of one recipient alone: its credentials, no key.

    Several of one recipient share its partitions.

    Examples:

      telemetry forward sentry --config /etc/telemetry/sentry.toml --member sentry-0
    """
    from telemetry.run import Part  # noqa: PLC0415 - as above

    settings = _with_member(settings_of(config, state, admin_bind=admin_bind), member)
    _run(settings, Part(gateway=False, pseudonymizer=False, forwards=(recipient,)))


def _with_member(settings: Settings, member: str | None) -> Settings:
    if member is None:
        return settings
    return msgspec.structs.replace(
        settings, broker=msgspec.structs.replace(settings.broker, member=member)
    )


_ANSWERED_503: Final = (
    "a gateway answers 503. Lost then: what Sentry's clients for Python, JavaScript and most other "
    "languages send (they drop what is answered 5xx), and what heap-api sends. Not lost: what our "
    "own SDK sends, until its memory is full; a reverse proxy that keeps requests."
)


def when_kafka_is_away(settings: Settings) -> str:
    """Say what becomes of events while Kafka takes none, and which clients lose them."""
    if settings.gateway.on_broker_loss == "reject":
        return _ANSWERED_503
    return (
        "`telemetry gateway` keeps events, encrypted, on its own disk, up to "
        f"{settings.broker.quota_mib} MiB, and answers 200: no client loses any until that is full "
        "or the disk is lost. `telemetry run` on Kafka answers 503."
    )


def _run(settings: Settings, part: Part) -> None:
    logs.configure(settings.log, production=settings.production)
    asyncio.run(serve(settings, part))


# ---------------------------------------------------------------------- topics

topics = typer.Typer(
    help="The topics that policy and settings call for: print, check, apply.",
    no_args_is_help=True,
)
app.add_typer(topics, name="topics")


def _called_for(settings: Settings) -> list[Topic]:
    from telemetry.brokers.kafka.topics import topics_for  # noqa: PLC0415 - as above
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415

    policy = load_policy(policy_dir(settings.policy.path))
    return topics_for(settings.broker, policy)


@topics.command("print")
def print_topics(
    *,
    as_: Annotated[
        Literal["cli", "strimzi", "terraform"], typer.Option("--as", help="In whose language.")
    ] = "cli",
    cluster: Annotated[str, typer.Option(help="Name of the cluster, for Strimzi.")] = "kafka",
    acls: Annotated[bool, typer.Option("--acls", help="Also what each role may do.")] = False,
    config: Config = None,
) -> None:
    """Print the topics for whoever administrates Kafka; changes nothing.

    Examples:

      telemetry topics print --as cli --acls | sh

      telemetry topics print --as strimzi --cluster events > topics.yaml
    """
    from telemetry.brokers.kafka import topics as written  # noqa: PLC0415 - as above

    settings = load_settings(config)
    wanted = _called_for(settings)
    grants = written.grants_for(settings.broker, wanted) if acls else []
    if as_ == "strimzi":
        typer.echo(written.as_strimzi(wanted, grants, cluster), nl=False)
    elif as_ == "terraform":
        typer.echo(written.as_terraform(wanted, grants), nl=False)
    else:
        typer.echo(written.as_commands(wanted, grants), nl=False)


@topics.command("check")
def check_topics(*, config: Config = None, as_json: Json = False) -> None:
    """Compare the topics of the live broker with what policy and settings call for; reads only.

    Exit code 1 if something differs: a topic that keeps longer than the policy allows is a promise
    broken, one that keeps shorter loses events.

    Examples:

      telemetry topics check

      telemetry topics check --json | jq .differences
    """
    from telemetry.brokers.kafka.topics import differences  # noqa: PLC0415 - as above

    settings = _with_kafka(load_settings(config))
    wanted = _called_for(settings)
    found = differences(settings.broker, wanted)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "topics": [topic.name for topic in wanted],
                    "differences": [difference._asdict() for difference in found],
                }
            )
        )
    else:
        console = Console(highlight=False)
        if found:
            table = Table(show_edge=False)
            for column in ("where", "setting", "is", "must be"):
                table.add_column(column)
            for difference in found:
                table.add_row(*difference)
            print_table(table, console)
        else:
            console.print(f"{len(wanted)} topics are [green]as they must be[/].")
    if found:
        raise typer.Exit(EXIT_NO)


@topics.command("apply")
def apply_topics(
    *,
    config: Config = None,
    yes: Yes = False,
) -> None:
    """Make missing topics, set what differs, add partitions. Needs an administrator's credentials.

    No role needs them. Removes no topic and no partition.

    Examples:

      telemetry topics apply --config admin.toml --yes
    """
    from telemetry.brokers.kafka.topics import apply, differences  # noqa: PLC0415 - as above

    settings = _with_kafka(load_settings(config))
    wanted = _called_for(settings)
    found = differences(settings.broker, wanted)
    for difference in found:
        typer.echo(
            f"{difference.where}: {difference.setting} {difference.found} → {difference.wanted}"
        )
    if not found:
        typer.echo("Nothing to do.")
        return
    confirm("Do it?", yes=yes)
    apply(settings.broker, wanted)
    left = differences(settings.broker, wanted)
    for difference in left:
        typer.echo(f"Left to do: {difference.where}: {difference.setting} {difference.wanted}")
    if left:
        raise typer.Exit(EXIT_NO)
    typer.echo("Done.")


def _with_kafka(settings: Settings) -> Settings:
    if not settings.broker.bootstrap:
        raise ConfigError(
            "no Kafka broker is named.",
            remedy="Set broker.bootstrap or TELEMETRY_KAFKA_BOOTSTRAP to host:port.",
        )
    return settings
