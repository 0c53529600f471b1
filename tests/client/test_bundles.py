"""The client bundle from a proxy that may be broken, replaced or lying."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fhe_llm.client.bundles import FetchedBundle, fetch_bundle
from fhe_llm.client.listing import BundleListing, LayerListing, ModelListing
from fhe_llm.client.transport import FunctionTransport, Patience
from fhe_llm.client.transport.operations import Answer, HttpCall
from fhe_llm.errors import DownloadError, ModelError, ProxyError
from fhe_llm.models.bundle import PINNED_DIGESTS, write_bundle
from fhe_llm.models.resolve import open_model

LAYER = LayerListing(name="head", in_features=1, out_features=1, plan_id="ef" * 32, log_weight_scale=24)


@dataclass
class Host:
    """Serves ``data`` as the bundle of a model it lists with ``digest``."""

    data: bytes
    model_digest: str
    name: str = "tiny"
    digest: str = ""
    ranges: bool = True
    calls: list[HttpCall] = field(default_factory=list)

    @property
    def listing(self) -> ModelListing:
        digest = self.digest or hashlib.sha256(self.data).hexdigest()
        return ModelListing(
            name=self.name,
            model_digest=self.model_digest,
            preset="default",
            bundle=BundleListing(digest=digest, size=len(self.data)),
            context_length=256,
            layers=(LAYER,),
        )

    def serve(self, call: HttpCall) -> Answer:
        self.calls.append(call)
        assert call.path == f"/v1/models/{self.name}/bundle"
        if not self.ranges:
            return Answer(200, {}, self.data)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers["range"]).groups()  # type: ignore[union-attr]
        return Answer(206, {}, self.data[int(first) : int(last) + 1])

    def fetch(self, cache: Path) -> FetchedBundle:
        transport = FunctionTransport(lambda _: b"", self.serve)
        return transport.run(fetch_bundle(self.listing, cache, patience=Patience(attempts=1)))


@pytest.fixture
def host(tiny_model_path: Path, tmp_path: Path) -> Host:
    source = open_model(tiny_model_path)
    write_bundle(source, tmp_path / "bundle")
    return Host((tmp_path / "bundle").read_bytes(), source.model_digest)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "bundles").iterdir() if path.suffix != ".lock")


def test_it_is_fetched_once_and_remembered(host: Host, cache: Path) -> None:
    assert host.fetch(cache).trust == "first_use"
    asked = len(host.calls)
    again = host.fetch(cache)
    assert (again.trust, again.bundle.model_digest) == ("remembered", host.model_digest)
    assert (len(host.calls), kept(cache)) == (asked, [".json", ".safetensors"])


@pytest.mark.parametrize("keep", [0, 1000, -1, None])
def test_a_damaged_cache_is_fetched_again(
    host: Host, cache: Path, keep: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = host.fetch(cache).path
    damaged = bytearray(host.data if keep is None else host.data[:keep])
    if keep is None:
        damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert host.fetch(cache).trust == "remembered"
    assert path.read_bytes() == host.data
    assert "is damaged: fetching it again" in caplog.text


def test_what_broke_off_is_resumed(host: Host, cache: Path) -> None:
    folder = cache / "bundles"
    folder.mkdir(parents=True)
    part = folder / f"{host.listing.bundle.digest}.part"
    part.write_bytes(host.data[:1000])
    assert host.fetch(cache).path.read_bytes() == host.data
    assert host.calls[0].headers["range"].startswith("bytes=1000-")
    assert not part.exists()


@pytest.mark.parametrize("found", [b"\0" * 1000, b"\0" * 2_000_000])
def test_a_wrong_beginning_on_disk_is_thrown_away(host: Host, cache: Path, found: bytes) -> None:
    folder = cache / "bundles"
    folder.mkdir(parents=True)
    (folder / f"{host.listing.bundle.digest}.part").write_bytes(found)
    assert host.fetch(cache).path.read_bytes() == host.data


def test_a_host_without_ranges_is_read_whole(host: Host, cache: Path) -> None:
    host.ranges = False
    assert host.fetch(cache).path.read_bytes() == host.data


def test_bytes_that_are_not_the_announced_ones_are_tried_twice_and_kept_never(
    host: Host, cache: Path
) -> None:
    host.digest, honest = host.listing.bundle.digest, host.data
    host.data = honest[:-1] + bytes([honest[-1] ^ 1])
    with pytest.raises(DownloadError, match="twice, is not of the announced digest"):
        host.fetch(cache)
    assert (len(host.calls), kept(cache)) == (2, [])


def test_a_short_answer_is_said_with_both_lengths(host: Host, cache: Path) -> None:
    whole = host.serve
    host.serve = lambda call: Answer(206, {}, whole(call).body[:-7])  # type: ignore[method-assign]
    with pytest.raises(DownloadError, match=rf"{len(host.data) - 7} bytes came instead of {len(host.data)}"):
        host.fetch(cache)


def test_a_refusal_is_the_hosts(host: Host, cache: Path) -> None:
    host.serve = lambda _: Answer(  # type: ignore[method-assign]
        404, {}, b'{"error":{"code":"unknown_model","message":"cannot find this model."}}'
    )
    with pytest.raises(ProxyError) as raised:
        host.fetch(cache)
    assert raised.value.proxy_code == "unknown_model"


def test_a_remembered_model_that_changed_is_refused(host: Host, cache: Path, tiny_model_path: Path) -> None:
    host.fetch(cache)
    host.digest = "ab" * 32
    with pytest.raises(ModelError, match=r"Do not use this proxy unless"):
        host.fetch(cache)


def test_a_pinned_model_is_never_trusted_on_first_use(host: Host, cache: Path) -> None:
    host.name = next(iter(PINNED_DIGESTS))
    with pytest.raises(ModelError, match="pinned in this library"):
        host.fetch(cache)
    assert host.calls == []


def test_weights_that_are_not_the_bundles_are_refused(host: Host, cache: Path) -> None:
    host.model_digest = "cd" * 32
    with pytest.raises(ModelError, match="weights are not those its bundle belongs to"):
        host.fetch(cache)


@pytest.mark.parametrize("memory", [b"", b"[]", b'{"tiny": 1}', b"\xff"])
def test_a_damaged_memory_of_digests_is_not_taken_for_an_empty_one(
    host: Host, cache: Path, memory: bytes
) -> None:
    host.fetch(cache)
    (cache / "bundles" / "trusted-bundles.json").write_bytes(memory)
    with pytest.raises(ModelError, match="delete it to trust anew"):
        host.fetch(cache)


def test_a_cache_that_cannot_be_written_is_said(host: Host, cache: Path) -> None:
    cache.write_bytes(b"a file")
    with pytest.raises((DownloadError, ModelError), match=r"^cannot (store|read) "):
        host.fetch(cache)
