"""The command line: ``gatehouse serve | models | generate | translate | bleu | keys`` and more.

``train``, ``evaluate``, ``average``, ``diversify``, ``import`` and ``bench`` are handed on to those
who do that.

Everything that can go wrong for a person ends in one clear sentence and an exit status, never in
a traceback.
"""

import argparse
import asyncio
import importlib
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from app.command_line import Run, make_parser
from app.exceptions import GatehouseError, StartupError
from app.logs import configure_logging, resolve_format
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from pydantic import BaseModel

    from app.api.requests import TranslateBody
    from app.lines import Translate
    from app.service.service import Service

    Work = Callable[[Service], Awaitable[int]]

Body = TypeVar("Body", bound="BaseModel")

OK, FAILED, USAGE = 0, 1, 2
"""Exit statuses: all went well; it could not be done; the command line makes no sense."""

OFFLINE_COMMANDS = {
    "train": ("training.cli", "train"),
    "evaluate": ("training.evaluate_cli", "train"),
    "average": ("training.average_cli", "train"),
    "diversify": ("training.diversify_cli", "train"),
    "import": ("training.importing.cli", "train"),
    "bench": ("benchmarks.__main__", "bench"),
}
"""Commands that are no part of the service: the module that runs each, and the extra it needs."""

_STATUS_INTERRUPTED = 130

LINES_AHEAD = 256
"""Lines under way at once: twice as many as are decoded together by default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words without the program's name; None takes the process's.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OFFLINE_COMMANDS:
        # Their options and help are their own, which is not loaded for anything else.
        return _run_offline_command(words[0], words[1:])
    arguments = make_parser(COMMANDS).parse_args(words)
    run: Run = arguments.run
    try:
        return run(arguments)
    except GatehouseError as error:
        print(f"gatehouse: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return _STATUS_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output (`head`, say) has enough.
        sys.stderr.close()
        return OK
    except OSError as error:
        print(f"gatehouse: {error}", file=sys.stderr)
        return FAILED


def _run_offline_command(command: str, words: Sequence[str]) -> int:
    module, extra = OFFLINE_COMMANDS[command]
    try:
        run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        print(
            f"gatehouse {command}: {error.name} is not installed, which serving does not need: "
            f"in a checkout run 'make {extra}' or pip install -c constraints.txt -e '.[{extra}]'",
            file=sys.stderr,
        )
        return FAILED
    status: int = run(words, prog=f"gatehouse {command}")
    return status


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments, host=arguments.host, port=arguments.port)
    configure_logging(settings.log_level, resolve_format(settings.log_format))
    from app.keys import read_keys

    read_keys(settings)
    # What can be known to fail is tried before anything slow is loaded: first the port.
    with _listen(settings) as listener:
        from app.catalog import read_checkpoints
        from app.server import run_server

        found = read_checkpoints(settings.checkpoints_dir, settings.models)
        run_server(settings, listener, [checkpoint.name for checkpoint in found])
    return OK


def _listen(settings: Settings) -> socket.socket:
    """A bound socket.

    Raises:
        StartupError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Listening at once claims the port: a second server is told before it loads models.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            "choose another with --port (0 takes any free one)"
        ) from None
    return listener


def _list_models(arguments: argparse.Namespace) -> int:
    from app.catalog import read_checkpoints, tasks_of

    settings = _settings(arguments)
    for info in read_checkpoints(settings.checkpoints_dir, settings.models):
        languages = f" {info.languages.source}-{info.languages.target}" if info.languages else ""
        quality = ", ".join(f"{name} {value:g}" for name, value in info.training.metrics.items())
        print(
            f"{info.name}: {info.config.kind}{languages}, "
            f"{', '.join(tasks_of(info)) or 'cannot generate'}, "
            f"{info.parameter_count:,} parameters, {info.training.licence}"
            + (f"; {quality}" if quality else "")
        )
    return OK


def _generate(arguments: argparse.Namespace) -> int:
    from app.api.requests import GenerateBody

    arguments.echo = True
    names = ("prompt", "model", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "echo")
    body = _checked(GenerateBody, arguments, names)

    async def work(service: "Service") -> int:
        result = await service.generate(body.to_request(service.limits))
        print(result.outputs[0].text)
        return OK

    return _offline(_settings(arguments, engine="inline"), work)


def _translate(arguments: argparse.Namespace) -> int:
    from app.api.requests import TranslateBody

    arguments.text = ""
    names = ("text", "source", "target", "model", "beam_size", "length_penalty")
    body = _checked(TranslateBody, arguments, names)
    if arguments.ray:
        return _translate_corpus(arguments, body)
    if arguments.inputs or arguments.out:
        raise StartupError(
            "INPUT and --out are for --ray: without it, lines come on standard input"
        )
    if arguments.server:
        key = _settings(arguments).api_key
        secret = None if key is None else key.get_secret_value()
        return asyncio.run(_translate_by_server(arguments.server, secret, body))

    async def work(service: "Service") -> int:
        async def translate(line: str) -> str:
            result = await service.translate(body.model_copy(update={"text": line}).to_request())
            return result.translations[0][0].text

        return await _translate_input(translate)

    # What is read ahead has to have room in the queue.
    capacity = max(_settings(arguments).queue_capacity, 2 * LINES_AHEAD)
    settings = _settings(arguments, engine="inline", queue_capacity=capacity)
    return _offline(settings, work)


def _translate_corpus(arguments: argparse.Namespace, body: "TranslateBody") -> int:
    from app.corpus.command import CorpusRequest, translate_corpus

    if arguments.server:
        raise StartupError("--ray loads models, --server asks a server that has: give one of them")
    if not arguments.inputs or arguments.out is None:
        raise StartupError("--ray needs what to translate and where to: INPUT... --out DIR")
    request = CorpusRequest(
        inputs=tuple(arguments.inputs),
        out=arguments.out,
        column=arguments.column,
        translation_column=arguments.translation_column,
        shard_lines=arguments.shard_lines,
        address=arguments.ray_address,
        workers=arguments.workers,
    )
    report = translate_corpus(_settings(arguments), request, body.to_request())
    return FAILED if report.failures else OK


async def _translate_by_server(address: str, api_key: str | None, body: "TranslateBody") -> int:
    from gatehouse_client import AsyncClient, ClientError

    options: Any = body.model_dump(exclude_unset=True, exclude={"text"})
    try:
        connected = AsyncClient(address, api_key=api_key)
    except ValueError as error:
        raise StartupError(f"GATEHOUSE_API_KEY: {error}") from None
    async with connected as client:

        async def translate(line: str) -> str:
            try:
                answer = await client.translate(line, **options)
            except ClientError as error:
                raise StartupError(str(error)) from error
            return answer.translations[0].text

        return await _translate_input(translate)


async def _translate_input(translate: "Translate") -> int:
    from tqdm import tqdm

    from app.lines import translate_lines

    with (
        # Not sys.stdin, which Python would close at the end while a thread may still wait on it.
        open(sys.stdin.fileno(), "rb", closefd=False) as source,
        open(sys.stdout.fileno(), "wb", closefd=False) as target,
        tqdm(
            total=_size_bytes(source),
            unit="B",
            unit_scale=True,
            disable=None,  # where stderr is no terminal
        ) as bar,
    ):
        await translate_lines(source, target, translate, window=LINES_AHEAD, advance=bar.update)
    return OK


def _size_bytes(stream: BinaryIO) -> int | None:
    """Of a file; None for what has no end yet."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _bleu(arguments: argparse.Namespace) -> int:
    from app.service.scoring import ScoringRequest, compute_scores

    hypotheses = _read_lines(arguments.hypotheses)
    streams = [_read_lines(path) for path in arguments.references]
    for path, stream in zip(arguments.references, streams, strict=True):
        if len(stream) != len(hypotheses):
            raise StartupError(
                f"{path} has {len(stream)} lines, but {arguments.hypotheses} {len(hypotheses)}"
            )
    if not hypotheses:
        raise StartupError(f"{arguments.hypotheses} is empty")
    request = ScoringRequest(
        tuple(hypotheses), tuple(zip(*streams, strict=True)), tuple(arguments.metrics)
    )
    for name, score in compute_scores(request).items():
        print(f"{name} {score.score:.4f}" + (f"  {score.signature}" if score.signature else ""))
    return OK


def _make_key(arguments: argparse.Namespace) -> int:
    from app.keys import append_key, make_key

    secret, key = make_key(arguments.name, "admin" if arguments.admin else "user")
    if arguments.file is not None:
        append_key(arguments.file, key)
    print(f"key    {secret}")
    print(f"entry  {key.entry}")
    return OK


def _offline(settings: Settings, work: "Work") -> int:
    """Load the models and do some work with them, without a server or a second process."""
    from app.runtime import Runtime

    async def run() -> int:
        runtime = Runtime(settings)
        await runtime.start()
        try:
            await runtime.wait_until_loaded()
            return await work(runtime.service())
        finally:
            await runtime.stop()

    return asyncio.run(run())


def _settings(arguments: argparse.Namespace, **overrides: Any) -> Settings:
    return load_settings(
        checkpoints_dir=arguments.checkpoints,
        device=getattr(arguments, "device", None),
        **overrides,
    )


def _checked(schema: "type[Body]", arguments: argparse.Namespace, names: Sequence[str]) -> "Body":
    """The options as the API's own body, so that the same ranges hold.

    Raises:
        StartupError: a value is out of range.
    """
    from pydantic import ValidationError

    options = {name: getattr(arguments, name) for name in names}
    try:
        return schema.model_validate({k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StartupError(f"{first['loc'][0]}: {first['msg']}") from None


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read {path}: {error}") from None
    return [line.rstrip() for line in text.removesuffix("\n").split("\n")] if text else []


COMMANDS: dict[str, Run] = {
    "serve": _serve,
    "models": _list_models,
    "generate": _generate,
    "translate": _translate,
    "bleu": _bleu,
    "keys": _make_key,
}
"""What runs each command of the service."""


if __name__ == "__main__":
    sys.exit(main())
