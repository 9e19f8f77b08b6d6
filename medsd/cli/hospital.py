"""The verbs for a hospital: the forms of one image's result, a DICOM node that makes them of all, a server."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd.cli.options import (
    BundleFolder,
    Coverage,
    Digits,
    Gate,
    GateSet,
    Json,
    Where,
    print_summary,
    read_gate,
    requiring,
)

if TYPE_CHECKING:
    from ssl import SSLContext

    from medsd.pacs.deliver import Destination, WebDestination

_OBJECTS = (
    "separated by commas: sr (Comprehensive SR), sr3d, text (Basic Text SR), key-image (secondary capture), gsps "
    "(outlines to switch on and off), pdf, kos (why an image was refused)"
)
_Cases = Annotated[int, typer.Option("-k", min=0, max=100, help="how many similar cases the result tells of")]


def report(
    bundle: BundleFolder,
    file: Annotated[Path, typer.Argument(help="DICOM file of a chest radiograph")],
    out: Annotated[Path, typer.Option(help="folder for the results: one folder for each image")],
    forms: Annotated[
        str, typer.Option("--as", help=f"what to write, {_OBJECTS}, hl7 (ORU^R01), fhir (DiagnosticReport)")
    ] = "sr",
    note: Annotated[str | None, typer.Option(help="the clinical note")] = None,
    previous: Annotated[list[Path] | None, typer.Option(help="an earlier SR of this study; the new follows it")] = None,
    audit_log: Annotated[Path | None, typer.Option("--audit", help="an audit log that gets a line")] = None,
    opinions: Annotated[
        Path | None, typer.Option("--feedback", help="the app's --feedback: also a record of what readers said")
    ] = None,
    k: _Cases = 0,
    coverage: Coverage = None,
    provider: Where = "auto",
    precision: Digits = "auto",
    gate: Gate = None,
    set_: GateSet = None,
    as_json: Json = False,
) -> None:
    """The result of one image as DICOM objects in its study, as HL7 message or as FHIR resources, with its patient.

    Example: medsd report models/nih14 image.dcm --out results --as sr,key-image,gsps,pdf,kos,hl7,fhir
    """
    with requiring("pacs", "medsd report"):
        from medsd.apps import assessments
        from medsd.results.objects import forms_of
        from medsd.results.reporter import Reporter, write_report

        said = partial(assessments.opinions_on, assessments.folder_of(opinions)) if opinions else None
        wanted, policy = forms_of(forms), read_gate(gate, set_)
        how = {"provider": provider, "precision": precision, "coverage": coverage}
        with Reporter(bundle, wanted, k=k, policy=policy, **how) as reporter:
            told = {"note": note, "previous": previous or (), "audit": audit_log, "opinions_on": said}
            print_summary(write_report(reporter, file, out, **told), as_json)  # type: ignore[arg-type]


_Host = Annotated[str, typer.Option(help="address; any but a loopback one needs --allow or client certificates")]
_Queue = Annotated[Path, typer.Option(help="folder of what waits, with patients in it; keep it over a restart")]
_NodeAudit = Annotated[
    Path | None, typer.Option("--audit", help="the audit log; audit.jsonl in the folder of --queue by default")
]
_Complete = Annotated[
    float, typer.Option("--complete-after", min=0, help="seconds without a new image that complete a study")
]
_StatusPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="status page and Prometheus metrics on the loopback address")
]
_Certificate = Annotated[
    Path | None, typer.Option("--tls-cert", help="certificate of this node: the port speaks TLS alone")
]
_Authority = Annotated[Path | None, typer.Option("--tls-ca", help="authority whose certificates senders must show")]
_ForwardAuthority = Annotated[
    Path | None, typer.Option(help="authority of the archive's certificate; the system's by default")
]

_Forward = Annotated[
    str, typer.Option(help="the archive that the results go to: AE@host:port, or https://host/path/studies")
]
_Hl7 = Annotated[str | None, typer.Option(help="where an HL7 message of each result goes, by MLLP: host:port")]


def receive(
    bundle: BundleFolder,
    forward: _Forward,
    port: Annotated[int, typer.Option(min=0, max=65535, help="to listen on; 0 takes any free port")] = 11112,
    host: _Host = "127.0.0.1",
    title: Annotated[str, typer.Option(help="AE title of this node")] = "MEDSD",
    allow: Annotated[list[str] | None, typer.Option(help="an AE title that may send; any, where none is given")] = None,
    queue: _Queue = Path("medsd-queue"),
    kinds: Annotated[str, typer.Option("--as", help=f"the objects, {_OBJECTS}")] = "sr",
    audit_log: _NodeAudit = None,
    complete_s: _Complete = 30.0,
    status_port: _StatusPort = None,
    certificate: _Certificate = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="private key of --tls-cert")] = None,
    authority: _Authority = None,
    forward_tls: Annotated[bool, typer.Option("--forward-tls", help="deliver by TLS, showing --tls-cert")] = False,
    forward_ca: _ForwardAuthority = None,
    hl7: _Hl7 = None,
    hl7_tls: Annotated[bool, typer.Option("--hl7-tls", help="by TLS, with --forward-ca and --tls-cert")] = False,
    associations: Annotated[int, typer.Option("--max-associations", min=1, help="senders at once")] = 16,
    object_mb: Annotated[int, typer.Option("--max-image-mb", min=1, help="MB (2^20 bytes) of one image")] = 128,
    memory_mb: Annotated[int, typer.Option("--max-memory-mb", min=1, help="of all images that come in at once")] = 1024,
    queue_gb: Annotated[float, typer.Option("--max-queue-gb", min=0, help="GB (2^30 bytes) of what waits")] = 50.0,
    free_gb: Annotated[float, typer.Option("--min-free-gb", min=0, help="to be left free on the disk")] = 1.0,
    k: _Cases = 0,
    coverage: Coverage = None,
    provider: Where = "auto",
    precision: Digits = "auto",
    gate: Gate = None,
    set_: GateSet = None,
) -> None:
    """A DICOM node: CR and DX come in by C-STORE, results go to an archive; each image has one, after a crash too.

    SIGTERM or Ctrl+C ends it when what is under way is done; what waits is there at the next start.

    Example: medsd receive models/nih14 --port 11112 --allow CR1 --forward ORTHANC@127.0.0.1:4242
    """
    with requiring("pacs", "medsd receive"):
        from medsd.pacs.deliver import Hl7Destination
        from medsd.pacs.node import serve
        from medsd.pacs.receive import Listening, NodeLimits
        from medsd.results.objects import KINDS, forms_of
        from medsd.results.reporter import Reporter

    sizes = (object_mb << 20, associations, memory_mb << 20, int(queue_gb * 2**30), int(free_gb * 2**30))
    listening = Listening(title, host, port, tuple(allow or ()), _port_tls(certificate, key, authority, "--tls-ca"))
    destination = _archive(forward, forward_tls, certificate, key, forward_ca, stores=True)
    messages = Hl7Destination.of(hl7, _call_tls(hl7_tls, certificate, key, forward_ca)) if hl7 else None
    if forward_ca is not None and not (forward_tls or hl7_tls or "://" in forward):
        raise typer.BadParameter("--forward-ca needs --forward-tls")
    how = {"provider": provider, "precision": precision, "coverage": coverage}
    node = {"listening": listening, "limits": NodeLimits(*sizes), "quiet_s": complete_s, "status_port": status_port}
    forms = forms_of(kinds, KINDS) + (("hl7",) if hl7 else ())
    with Reporter(bundle, forms, k=k, policy=read_gate(gate, set_), **how) as reporter:
        serve(reporter, destination, queue, messages=messages, audit=audit_log, **node)  # type: ignore[arg-type]


_Source = Annotated[str, typer.Argument(help="AE@host:port, or https://host/path/studies (or a study of it)")]
_Dates = Annotated[str, typer.Option("--date", help="Study Date: a day, or a range such as 20260101-20260131")]
_Matching = Annotated[list[str] | None, typer.Option("--match", help="a further key: StationName=CR1")]
_MoveTo = Annotated[
    str | None,
    typer.Option(help="AE title of a node that runs, as the archive knows it; C-MOVE sends the images there"),
]


def fetch(
    source: _Source,
    out: Annotated[Path | None, typer.Option(help="folder for the images, named by keyed hashes")] = None,
    queue: Annotated[Path | None, typer.Option(help="the --queue of a node that does not run now")] = None,
    move_to: _MoveTo = None,
    dates: _Dates = "",
    modality: Annotated[list[str], typer.Option(help="of the series")] = ["CR", "DX"],  # noqa: B006  # typer copies it
    match: _Matching = None,
    title: Annotated[str, typer.Option(help="our AE title, which the archive must know")] = "MEDSD",
    host: Annotated[str, typer.Option(help="address at which the archive finds us, for C-MOVE")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="at which the archive finds us, for C-MOVE")] = 11112,
    by_tls: Annotated[bool, typer.Option("--tls", help="ask by TLS, showing --tls-cert")] = False,
    certificate: _Certificate = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="private key of --tls-cert")] = None,
    authority: Annotated[Path | None, typer.Option("--tls-ca", help="authority of the archive's certificate")] = None,
    object_mb: Annotated[int, typer.Option("--max-image-mb", min=1, help="MB (2^20 bytes) of one image")] = 128,
    free_gb: Annotated[float, typer.Option("--min-free-gb", min=0, help="to be left free on the disk")] = 1.0,
    as_json: Json = False,
) -> None:
    """Pull radiographs from an archive, into a folder or to a node: by C-FIND and C-MOVE, or by QIDO-RS and WADO-RS.

    Images that are there already do not count as new. The exit status is 1 where one did not come.

    Example: medsd fetch ORTHANC@127.0.0.1:4242 --move-to MEDSD --date 20260101-20260131
    """
    with requiring("pacs", "medsd fetch"):
        from medsd.pacs.fetch import Query, fetch_images
        from medsd.pacs.receive import Listening, NodeLimits

    if sum(place is not None for place in (out, queue, move_to)) != 1:
        raise typer.BadParameter("give one of --out, --queue and --move-to")
    if any("=" not in each for each in match or ()):
        raise typer.BadParameter("--match wants KEYWORD=VALUE")
    matching = tuple((name, value) for name, _, value in (each.partition("=") for each in match or ()))
    archive = _archive(source, by_tls, certificate, key, authority)
    sender, tls = getattr(archive, "title", None), _port_tls(certificate, key, certificate and authority, "--tls-ca")
    ours = Listening(title, host, port, (sender,) if sender else (), tls)
    fetched = fetch_images(
        archive,
        Query(dates, tuple(modality), matching),
        ours,
        NodeLimits(object_mb << 20, free_bytes=int(free_gb * 2**30)),
        out=out,
        queue=queue,
        move_to=move_to,
    )
    print_summary(fetched, as_json)
    if fetched.failed:
        raise typer.Exit(1)


def assessed(
    bundle: BundleFolder,
    paths: Annotated[list[Path], typer.Argument(help="files and folders with assessments and their images")],
    into: Annotated[Path, typer.Option(help="folder like that of medsd app --feedback; medsd train reads it")],
    provider: Where = "auto",
    as_json: Json = False,
) -> None:
    """Read what radiologists said of results back from an archive, as labels of the images.

    Example: medsd assessed models/nih14 images --into labels
    """
    with requiring("pacs", "medsd assessed"):
        from medsd.apps import assessments
        from medsd.results.reporter import Reporter

        with Reporter(bundle, provider=provider) as reporter:
            print_summary(assessments.take_in(reporter, paths, assessments.folder_of(into)), as_json)


_Token = Annotated[Path | None, typer.Option("--token-file", help="tokens of who may ask, one on each line")]
_ClientAuthority = Annotated[
    Path | None, typer.Option("--tls-client-ca", help="authority whose certificates clients must show")
]


def serve(
    bundle: BundleFolder,
    host: Annotated[str, typer.Option(help="address; any but a loopback one needs tokens or client certificates")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="to listen on; 0 takes any free port")] = 8000,
    token_file: _Token = None,
    certificate: Annotated[Path | None, typer.Option("--tls-cert", help="certificate: the port is HTTPS")] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="private key of --tls-cert")] = None,
    authority: _ClientAuthority = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that decode")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="images in one run of the model")] = 8,
    requests: Annotated[int, typer.Option("--max-requests", min=1, help="at once; one more gets 503")] = 32,
    image_mb: Annotated[int, typer.Option("--max-image-mb", min=1, help="MB (2^20 bytes) of one image")] = 128,
    audit_log: Annotated[Path | None, typer.Option("--audit", help="an audit log that gets a line an answer")] = None,
    provider: Where = "auto",
    precision: Digits = "auto",
    gate: Gate = None,
    set_: GateSet = None,
) -> None:
    """The model over HTTP: predictions of files as JSON, and tensors by the Open Inference Protocol (KServe v2).

    SIGTERM or Ctrl+C ends it when what is under way is done.

    Example: medsd serve models/nih14 --port 8000
    """
    from medsd.rest.bodies import RequestLimits
    from medsd.rest.engine import Engine
    from medsd.rest.serve import HttpListening, read_tokens
    from medsd.rest.serve import serve as serve_engine

    tokens = read_tokens(token_file) if token_file else ()
    listening = HttpListening(host, port, tokens, _port_tls(certificate, key, authority, "--tls-client-ca"))
    listening.check()  # before the model is loaded
    engine = Engine(
        bundle,
        workers=workers,
        batch_size=batch_size,
        audit=audit_log,
        provider=provider,
        precision=precision,
        policy=read_gate(gate, set_),
    )
    serve_engine(engine, listening, RequestLimits(image_mb << 20, requests))


def audit(
    log: Annotated[Path, typer.Argument(help="an audit log that report, receive or serve wrote")], as_json: Json = False
) -> None:
    """Check that an audit log is as it was written: one line for each result, none changed or taken out.

    The exit status is 1 where it is not. It needs the key of the machine that wrote the log (MEDSD_KEY).

    Example: medsd audit medsd-queue/audit.jsonl
    """
    from medsd.privacy import KeyedHasher
    from medsd.results.audit import AuditLog

    checked = AuditLog(log, KeyedHasher.from_environment()).check()
    print_summary(checked, as_json)
    if checked.broken is not None:
        raise typer.Exit(1)


def _port_tls(certificate: Path | None, key: Path | None, authority: Path | None, option: str) -> "SSLContext | None":
    """What a port shows and asks for; `option` names the authority. None without a certificate."""
    from medsd.listening import server_context

    if (certificate is None) != (key is None):
        raise typer.BadParameter("--tls-cert and --tls-key belong together")
    if authority is not None and certificate is None:
        raise typer.BadParameter(f"{option} needs --tls-cert and --tls-key")
    if certificate is None or key is None:
        return None
    return server_context(certificate, key, authority)


def _call_tls(by_tls: bool, certificate: Path | None, key: Path | None, authority: Path | None) -> "SSLContext | None":
    """What a call shows and trusts; None for one in the clear."""
    from medsd.listening import client_context

    return client_context(certificate, key, authority) if by_tls else None


def _archive(
    text: str, by_tls: bool, certificate: Path | None, key: Path | None, authority: Path | None, *, stores: bool = False
) -> "Destination | WebDestination":
    """An archive that is asked for images, or one that `stores` results."""
    from medsd.dicom.web import Address
    from medsd.pacs.deliver import Destination, WebDestination

    if "://" not in text:
        return Destination.of(text, _call_tls(by_tls, certificate, key, authority))
    shown = (certificate, key) if by_tls and certificate and key else None
    return WebDestination.of(text, authority, shown) if stores else WebDestination(Address.of(text), authority, shown)


VERBS = (report, assessed, receive, fetch, serve, audit)
