"""The parts of one running proxy, assembled once; routes reach them through ``app.state.proxy``."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.contract import Evaluator
from fhe_llm.privacy.ledger_place import open_ledger
from fhe_llm.progress import Progress, silent
from fhe_llm.wire import frame as wire
from fhe_llm_server.batcher import MAX_REQUEST_JOBS, Batcher
from fhe_llm_server.keyframes import KeyFrames
from fhe_llm_server.keystore import KeyStore
from fhe_llm_server.limits import MAX_KEY_BYTES, Limits
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.model_host import ModelHost
from fhe_llm_server.prepared_keys import PreparedKeys
from fhe_llm_server.rounds import Rounds
from fhe_llm_server.settings import Settings
from fhe_llm_server.work_meter import WorkMeter

logger = logging.getLogger(__name__)


class Proxy:
    """Starts and stops with the application; everything it owns belongs to one event loop."""

    def __init__(
        self, settings: Settings, evaluator: Evaluator, metrics: Metrics, progress: Progress = silent
    ) -> None:
        self.metrics = metrics
        self.host = ModelHost(settings.model, evaluator, settings.data_dir, progress)
        self._frames = KeyFrames(evaluator)
        self.keystore = KeyStore(
            settings.data_dir, settings.key_cache_bytes, MAX_KEY_BYTES, verify=self._frames.verify
        )
        self.limits = Limits(
            max_body_bytes=settings.max_body_bytes,
            max_key_bytes=self.keystore.max_key_bytes,
            max_jobs=MAX_REQUEST_JOBS,
        )
        self.key_pool = ThreadPoolExecutor(2, "keys")
        self._wire_pool = ThreadPoolExecutor(2, "wire")
        at_once, together = evaluator.parallel, evaluator.jobs_per_pass
        self.batcher = Batcher(
            evaluator, settings.max_queued_jobs, metrics, at_once, together, on_lost=self._fail
        )
        self.prepared = PreparedKeys(
            lambda key_id: self._frames.prepare(key_id, self.keystore.read(key_id)),
            settings.prepared_key_bytes,
            self.key_pool,
            metrics,
        )
        self.meter = WorkMeter(lambda: open_ledger(settings.ledger_place()))
        self.rounds = Rounds(
            self.host,
            self.prepared,
            self.batcher,
            self.meter,
            self._wire_pool,
            metrics,
            wire.Limits(max_frame_bytes=settings.max_body_bytes, max_jobs=MAX_REQUEST_JOBS),
        )
        self._loading: asyncio.Task[None] | None = None
        self.failure: FheLlmError | None = None
        self.failed = asyncio.Event()
        self._watch()

    async def start(self) -> None:
        """Open the key store and begin loading; returns at once."""
        await asyncio.to_thread(self.keystore.open)
        await self.meter.start()
        self._loading = asyncio.create_task(self._load())

    async def stop(self) -> None:
        """Finish what runs, refuse the rest."""
        self.host.stop()
        if self._loading is not None:
            await self._loading
        await asyncio.to_thread(self.batcher.close)
        await self.meter.close()
        for pool in (self.key_pool, self._wire_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        try:
            await asyncio.to_thread(self.host.load)
            self.batcher.set_pass([layer.encoded for layer in self.host.ready().layers.values()])
        except FheLlmError as error:
            self._fail(error)
        except Exception:
            logger.exception("cannot load the model")
            self.failure = FheLlmError("cannot load the model: an unforeseen failure. See the log.")
            self.failed.set()

    def _fail(self, error: FheLlmError) -> None:
        """End the process with one line; whoever runs it starts it again."""
        if not self.failed.is_set():
            logger.error("%s", error)
            self.failure = error
            self.failed.set()

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch("fhe_llm_queue_jobs", "Jobs waiting for the evaluator.", lambda: self.batcher.queued_jobs)
        watch("fhe_llm_key_files", "Evaluation keys on disk.", lambda: len(self.keystore))
        watch("fhe_llm_key_file_bytes", "Bytes of evaluation keys on disk.", lambda: self.keystore.used_bytes)
        watch("fhe_llm_prepared_key_bytes", "Bytes of prepared keys.", lambda: self.prepared.used_bytes)
        watch("fhe_llm_ready", "1 once the model is ready.", lambda: float(self.host.phase.name == "ready"))
