"""SmolLM2-135M behind a proxy: answers about documents, function calls, structured answers that make sense."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from llamaindex_kit import MakeLLM, makers
from pydantic import BaseModel

from fhe_llm import KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm_llamaindex import LocalEmbedding, encrypted_query_engine

PAGE = Path(__file__).parents[2] / "docs" / "llamaindex.md"
pytestmark = pytest.mark.slow

TEXTS = (
    "The car park in Birch Street costs 2 euros an hour. Patients who stay overnight park there for free.",
    "The pharmacy of the Lindenhof Clinic is on the ground floor, next to the main entrance.",
    "Do not eat in the six hours before an operation.",
)


class Place(BaseModel):
    city: Literal["Madrid", "Oslo", "Rome"]


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with ProxyProcess("smollm2-135m") as process:
        yield process


@pytest.fixture(scope="module")
def make(proxy: ProxyProcess, ring: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLLM]:
    yield from makers(proxy.base_url, ring, tmp_path_factory.mktemp("smollm2"), "smollm2-135m")


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    return VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=LocalEmbedding())


def test_the_default_engine_finds_and_answers(make: MakeLLM, index: VectorStoreIndex) -> None:
    engine = encrypted_query_engine(index, make(max_tokens=20), similarity_top_k=1)
    response = engine.query("How much does the car park cost?")
    assert response.source_nodes[0].node.text == TEXTS[0]
    assert "2 euros an hour" in str(response)
    assert response.metadata["finish_reason"] == "stop"


async def test_the_async_engine_streams_an_answer(make: MakeLLM, index: VectorStoreIndex) -> None:
    llm = make(max_tokens=20)
    engine = encrypted_query_engine(index, llm, similarity_top_k=1, streaming=True)
    response = await engine.aquery("Where is the pharmacy?")
    text = "".join([piece async for piece in response.async_response_gen()])
    assert "ground floor" in text
    await llm.aclose()


def test_a_function_is_called_with_what_was_asked_for(make: MakeLLM) -> None:
    def weather(city: Literal["Oslo", "Paris", "Rome"]) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    tool = FunctionTool.from_defaults(weather)
    result = make(max_tokens=48).predict_and_call([tool], "What is the weather in Paris?", tool_required=True)
    assert str(result) == "rain in Paris"


def test_a_structured_answer_fits_the_text(make: MakeLLM) -> None:
    prompt = PromptTemplate("{text} Where was Anna born?")
    made = make(max_tokens=16).structured_predict(Place, prompt, text="Anna was born in 1987 in Rome.")
    assert made.city == "Rome"


def test_a_conversation(make: MakeLLM) -> None:
    response = make(max_tokens=8).chat([ChatMessage("What is the capital of France?")])
    assert "Paris" in (response.message.content or "")


def test_the_page_runs_as_it_stands(
    proxy: ProxyProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where the ledger of the closed model is
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-never-sent")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("http://127.0.0.1:8080", proxy.base_url)
    names: dict[str, Any] = {}
    exec(code, names)
    names["llm"].close()
    shown = capsys.readouterr().out
    assert "Paris" in shown
    assert "2 euros an hour" in shown
    assert "guarantee" in shown
