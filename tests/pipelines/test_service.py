"""The application, asked over its own HTTP interface: answers, changes, limits, and every kind of bad request."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_files import TOPICS, documents, write_index
from starlette.testclient import TestClient

from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.index_changes import delete
from pipelines.search import Index
from pipelines.searching.hits import hits
from pipelines.service import make_app
from pipelines.serving.answers import NO_WORD, Searcher
from pipelines.serving.config import ServeConfig
from vae_core.errors import Stale

TOKEN = "secret-of-the-test"
LOCAL = "http://localhost"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[TestClient]:
    """A service whose index no test changes."""
    with serving(run / "index") as client:
        yield client


@pytest.fixture
def changing(run: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A service over an index of its own."""
    shutil.copytree(run / "index", tmp_path / "index")
    with serving(tmp_path / "index", run / "model") as client:
        yield client


def serving(index: Path, model: Path | None = None, token: str | None = None, **limits: Any) -> TestClient:
    config = ServeConfig(**({"refresh_s": 0, "rate": None} | limits))
    return TestClient(make_app(Searcher.open(index, model, None, config.refresh_s), config, token), LOCAL)


def search(client: TestClient, **query: Any) -> dict[str, Any]:
    answered = client.post("/search", json=query)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


def found(client: TestClient, **query: Any) -> list[str]:
    return [hit["id"] for hit in search(client, **query)["hits"]]


def note(id: str = "note/1", **fields: Any) -> dict[str, Any]:
    return {"id": id, "text": "bread and butter in the oven", "labels": ["notes"], "metadata": {"year": 2026}} | fields


# ---- answers


@pytest.mark.parametrize("rank", ["log-odds", "hamming"])
def test_a_text_has_the_hits_of_the_index_itself(client: TestClient, run: Path, rank: Any) -> None:
    index, encoder = Index.open(run / "index"), Encoder.load(run / "model")
    table = encoder.tokenizer.table([Document("q", "storm at the harbour", [], {}, "q", 1)])
    (expected,) = hits(index, index.search(encoder.ask(table), 7, rank))
    answer = search(client, text="storm at the harbour", k=7, rank=rank)
    assert answer == {"query": "storm at the harbour", "rank": rank, "known_words": 2, "hits": expected}


def test_an_id_and_its_code_find_the_documents_of_the_nearest_codes(client: TestClient, run: Path) -> None:
    index = Index.open(run / "index")
    codes = np.concatenate(index.codes())
    row = index.row_of("sea/150")
    distances = np.bitwise_count(codes ^ codes[row]).sum(axis=1)
    ordered = np.lexsort((np.arange(len(codes)), distances))
    ids = index.column("id").to_pylist()
    others = ordered[ordered != row]
    for query, nearest in (({"id": "sea/150"}, others[:9]), ({"code": codes[row].tobytes().hex()}, ordered[:9])):
        for rank in ("log-odds", "hamming"):
            answer = search(client, **query, k=9, rank=rank)
            assert [hit["id"] for hit in answer["hits"]] == [ids[one] for one in nearest]
            assert [hit["distance"] for hit in answer["hits"]] == distances[nearest].tolist()
            assert answer["query"] == next(iter(query.values()))


def test_queries_in_one_request_have_the_answers_that_each_has_alone(client: TestClient) -> None:
    queries: list[dict[str, Any]] = [
        {"text": "ship storm", "k": 3},
        {"text": "bread", "k": 12, "rank": "hamming"},
        {"id": "space/2", "k": 5, "filter": "year >= 2010"},
        {"text": "qqqq zzzz"},
        {"text": "moon", "k": 1},
    ]
    answers = client.post("/search", json={"queries": queries}).json()["answers"]
    assert answers == [search(client, **query) for query in queries]


def test_a_filter_leaves_the_best_of_those_that_pass(client: TestClient) -> None:
    everything = search(client, text="ship storm", k=300)["hits"]
    passing = [hit["id"] for hit in everything if hit["metadata"]["lang"] == "en" and hit["labels"] == ["sea"]]
    assert found(client, text="ship storm", k=20, filter="lang = 'en' and labels = 'sea'") == passing[:20]
    assert found(client, text="ship storm", filter="year > 3000") == []


def test_a_query_without_a_known_word_has_no_hits_and_is_told_why(client: TestClient) -> None:
    answer = search(client, text="qqqq zzzz")
    assert (answer["hits"], answer["known_words"], answer["message"]) == ([], 0, NO_WORD)


def test_more_hits_than_documents_are_all_documents_once(client: TestClient) -> None:
    ids = found(client, text="ship", k=1000)
    assert sorted(ids) == sorted(document.id for document in documents())


def test_an_explained_answer_has_codes_and_log_odds_that_give_score_and_distance(client: TestClient) -> None:
    answer = search(client, text="Ship, qqqq storm ship", k=20, explain=True)
    log_odds = np.array(answer["log_odds"])
    assert answer["words"] == ["ship", "storm"]
    assert bytes.fromhex(answer["code"]) == np.packbits(log_odds > 0, bitorder="little").tobytes()
    for hit in answer["hits"]:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(hit["code"]), np.uint8), bitorder="little").astype(bool)
        assert hit["distance"] == (bits != (log_odds > 0)).sum()
        assert hit["score"] == pytest.approx(-np.logaddexp(0, np.where(bits, -log_odds, log_odds)).sum(), abs=2e-3)


def test_encoded_texts_have_the_codes_of_the_encoder(client: TestClient, run: Path) -> None:
    texts = ["ship storm", "qqqq", "bread"]
    encoder = Encoder.load(run / "model")
    table = encoder.tokenizer.table([Document(str(n), text, [], {}, "q", n) for n, text in enumerate(texts)])
    encoded = encoder.encode(table)
    answer = client.post("/encode", json={"texts": texts}).json()
    assert (answer["bits"], answer["model"]) == (16, encoder.fingerprint)
    assert [one["code"] for one in answer["codes"]] == [code.tobytes().hex() for code in encoded.codes.bytes_NC.numpy()]
    assert [one["component"] for one in answer["codes"]] == encoded.components.tolist()
    assert [one["known_words"] for one in answer["codes"]] == [2, 0, 1]


def test_the_facts_are_those_of_the_index(client: TestClient, run: Path) -> None:
    facts = client.get("/facts").json()
    assert (facts["documents"], facts["bits"], facts["version"], facts["segments"]) == (300, 16, 0, 3)
    assert {one["name"] for one in facts["filters"]} == {"id", "text", "labels", "component", "year", "lang"}
    assert [len(topic["words"]) for topic in facts["topics"]] == [8] * 4
    assert sum(topic["share"] for topic in facts["topics"]) == pytest.approx(1, abs=1e-4)
    assert len(facts["bit_words"]) == 16
    index = Index.open(run / "index")  # the codes are mapped, and go with it
    codes = np.concatenate(index.codes())
    health = client.get("/facts/codes").json()
    assert (health["documents"], health["distinct_codes"]) == (300, len(np.unique(codes, axis=0)))


# ---- changes


def test_an_added_document_is_found_and_is_on_disk_when_it_is_answered(changing: TestClient) -> None:
    answer = changing.post("/documents", json={"documents": [note(), note("note/2", text="moon rocket")]}).json()
    assert answer == {"added": 2, "replaced": 0, "deleted": 0, "documents": 302, "version": 1}
    stored = changing.get("/documents/note/1").json()
    assert {name: stored[name] for name in note()} == note(metadata={"year": 2026, "lang": None})
    assert found(changing, id="note/1", k=300, filter="labels = 'notes'") == ["note/2"]
    path = changing.app.state.service.searcher.index.artifact.path  # type: ignore[attr-defined]
    assert Index.open(path).row_of("note/2") is not None


def test_a_document_with_a_known_id_takes_the_place_of_the_old_one_unless_told_not_to(changing: TestClient) -> None:
    again = note("sea/0", text="bread oven flour")
    refused = changing.post("/documents", json={"documents": [again], "upsert": False})
    assert (refused.status_code, "'sea/0' already" in refused.json()["error"]) == (409, True)
    assert changing.get("/documents/sea/0").json()["labels"] == ["sea"]
    answer = changing.post("/documents", json={"documents": [again, note()]}).json()
    assert (answer["added"], answer["replaced"], answer["documents"]) == (1, 1, 301)
    assert changing.get("/documents/sea/0").json()["text"] == "bread oven flour"


def test_deleted_documents_are_gone_and_all_or_none_are_deleted(changing: TestClient) -> None:
    refused = changing.request("DELETE", "/documents", json={"ids": ["sea/0", "nowhere", "sea/3"]})
    assert (refused.status_code, "'nowhere'; nothing was deleted" in refused.json()["error"]) == (404, True)
    assert changing.get("/documents/sea/0").status_code == 200
    assert changing.request("DELETE", "/documents", json={"ids": ["sea/0", "sea/3"]}).json()["deleted"] == 2
    assert changing.delete("/documents/sea/6").json()["documents"] == 297
    assert changing.delete("/documents/sea/6").status_code == 404
    assert changing.get("/facts/codes").json()["documents"] == 297
    assert changing.get("/documents/sea/0").status_code == 404
    assert not {"sea/0", "sea/3", "sea/6"} & set(found(changing, text="ship", k=1000))


def test_figures_are_there_where_all_of_a_segment_was_deleted(changing: TestClient) -> None:
    changing.post("/documents", json={"documents": [note()]})
    changing.delete("/documents/note/1")
    assert changing.get("/facts").json()["segments"] == 4
    assert changing.get("/facts/codes").json()["documents"] == 300


def test_a_version_that_another_program_published_answers_the_next_query(changing: TestClient) -> None:
    path = changing.app.state.service.searcher.index.artifact.path  # type: ignore[attr-defined]
    assert "sea/0" in found(changing, text="ship", k=1000)
    delete(path, ["sea/0"])
    assert "sea/0" not in found(changing, text="ship", k=1000)
    assert changing.get("/facts").json()["version"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (note(metadata={"colour": "red"}), "no field 'colour'; its metadata fields: year, lang"),
        (note(metadata={"year": "soon"}), "field 'year' holds 'soon'"),
        (note(text=""), "documents.0.text"),
        (note(id=""), "documents.0.id"),
        ({"text": "no id"}, "documents.0.id: Field required"),
    ],
)
def test_a_document_that_does_not_fit_is_named_and_nothing_is_added(
    changing: TestClient, wrong: dict[str, Any], said: str
) -> None:
    answered = changing.post("/documents", json={"documents": [note("fine"), wrong]})
    assert answered.status_code in (400, 422)
    assert said in answered.json()["error"].replace("documents.1", "documents.0")
    assert changing.get("/facts").json()["documents"] == 300


def test_a_document_twice_in_one_request_is_refused(changing: TestClient) -> None:
    answered = changing.post("/documents", json={"documents": [note(), note()]})
    assert (answered.status_code, "there twice" in answered.json()["error"]) == (400, True)


# ---- bad requests


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"text": "ship"', 422, "the body is not JSON (Expecting ',' delimiter at character 15)"),
        (b"[1, 2]", 422, "the body is not a JSON object"),
        (b"", 422, "Field required"),
        (b"\xff\xfe", 422, "not JSON"),
        (b"{}", 422, "give one of text, id and code; this has none of them"),
        (b'{"text": "ship", "id": "sea/0"}', 422, "this has text and id"),
        (b'{"text": " \\n"}', 422, "the text is empty; say what to look for"),
        (b'{"text": 7}', 422, "text: Input should be a valid string"),
        (b'{"txt": "ship"}', 422, "txt: Extra inputs are not permitted"),
        (b'{"text": "ship", "k": 0}', 422, "k: Input should be greater than or equal to 1"),
        (b'{"text": "ship", "k": 1001}', 400, "k = 1001 is more than the 1000 hits that this service allows at once"),
        (b'{"text": "ship", "rank": "best"}', 422, "rank: Input should be 'log-odds' or 'hamming'"),
        (b'{"text": "ship", "filter": "colour = 1"}', 400, "no column 'colour'"),
        (b'{"text": "ship", "filter": "year >"}', 400, "cannot be read"),
        (b'{"code": "ab"}', 400, "the code has 8 bits and the index 16"),
        (b'{"code": "shipwreck"}', 400, "not hexadecimal digits"),
        (b'{"id": "sea/9999"}', 404, "the index has no document 'sea/9999'"),
        (b'{"queries": []}', 422, "queries: List should have at least 1 item"),
        (json.dumps({"queries": [{"text": "ship"}] * 257}).encode(), 400, "257 queries is more than the 256"),
        (b'{"queries": [{"text": "ship"}, {"id": "nowhere"}]}', 404, "no document 'nowhere'"),
    ],
)
def test_a_bad_query_is_answered_with_what_is_wrong_and_the_service_goes_on(
    client: TestClient, body: bytes, status: int, said: str
) -> None:
    answered = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert (answered.status_code, list(answered.json())) == (status, ["error"])
    assert said in answered.json()["error"]
    assert len(found(client, text="ship")) == 10


def test_addresses_and_methods_that_are_not_there_are_named(client: TestClient) -> None:
    assert client.get("/nowhere").json()["error"].startswith("there is nothing at /nowhere;")
    wrong = client.put("/search", json={})
    assert (wrong.status_code, wrong.json()["error"].startswith("PUT is not for this address")) == (405, True)


def test_a_failure_of_the_service_itself_names_the_request_and_not_its_text(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("ship storm")

    monkeypatch.setattr(client.app.state.service.searcher.encoder, "encode", broken)  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, "latentbits.service"):
        answered = client.post("/search", json={"text": "ship storm"}, headers={"x-request-id": "mine-1"})
    monkeypatch.undo()
    assert (answered.status_code, "under request mine-1" in answered.json()["error"]) == (500, True)
    failed = next(record for record in caplog.records if record.getMessage() == "failed")
    assert "RuntimeError" in str(failed.__dict__)
    assert "ship storm" not in str(failed.__dict__["facts"])
    assert len(found(client, text="ship")) == 10


def test_an_index_of_another_model_is_refused_before_anything_is_served(run: Path, tmp_path: Path) -> None:
    write_index(tmp_path, seed=1)
    with pytest.raises(Stale, match=r"holds codes of the model .* and this model is"):
        Searcher.open(run / "index", tmp_path / "model")


# ---- limits


def test_with_a_token_only_those_who_send_it_are_answered(run: Path) -> None:
    with serving(run / "index", token=TOKEN) as client:
        for given in (None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"):
            headers = {} if given is None else {"authorization": given}
            for method, path in (
                ("POST", "/search"),
                ("DELETE", "/documents/sea/0"),
                ("GET", "/metrics"),
                ("GET", "/facts"),
            ):
                answered = client.request(method, path, headers=headers)
                assert (answered.status_code, answered.headers["www-authenticate"]) == (401, "Bearer"), (given, path)
                assert "token" in answered.json()["error"]
                assert TOKEN not in answered.text
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert len(found(client, text="ship")) == 10
        assert client.get("/documents/sea/0").status_code == 200


def test_the_page_and_the_states_need_no_token_and_hold_no_document(run: Path) -> None:
    with serving(run / "index", token=TOKEN) as client:
        for path in ("/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/readyz", "/openapi.json"):
            answered = client.get(path)
            assert answered.status_code == 200
            assert not any(word in answered.text for word in TOPICS["space"].split()[5:])


def test_without_a_token_a_request_under_another_name_is_refused(client: TestClient) -> None:
    for name in ("evil.example", "localhost.evil.example", "10.0.0.1"):
        answered = client.post("/search", json={"text": "ship"}, headers={"host": name})
        assert (answered.status_code, "localhost only" in answered.json()["error"]) == (403, True)
    for name in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": name}).status_code == 200


def test_a_request_that_is_too_large_is_refused_whether_it_says_so_or_not(run: Path) -> None:
    with serving(run / "index", max_body_bytes=1024) as client:
        announced = client.post("/search", json={"text": "ship " * 1000})
        streamed = client.post("/search", content=(b"x" * 100 for _ in range(100)))
        for answered in (announced, streamed):
            assert (answered.status_code, "1,024 bytes" in answered.json()["error"]) == (413, True)
        assert len(found(client, text="ship")) == 10


def test_an_address_that_sends_too_much_is_told_to_wait(run: Path) -> None:
    with serving(run / "index", rate=3) as client:
        answers = [client.get("/healthz") for _ in range(6)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert "slow down" in refused[0].json()["error"]


def test_an_answer_that_takes_too_long_is_given_up_and_the_next_is_answered(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    with serving(run / "index", timeout_s=0.3) as client:
        searcher = client.app.state.service.searcher  # type: ignore[attr-defined]
        monkeypatch.setattr(searcher, "answer", lambda queries: time.sleep(1) or [{}] * len(queries))
        answered = client.post("/search", json={"text": "ship"})
        assert (answered.status_code, "within 0.3 seconds" in answered.json()["error"]) == (504, True)
        monkeypatch.undo()
        time.sleep(1)
        assert len(found(client, text="ship")) == 10


# ---- figures, logs, schema


def test_the_metrics_count_what_was_asked(run: Path) -> None:
    with serving(run / "index") as client:
        search(client, text="ship")
        client.post("/search", json={"queries": [{"text": "ship"}, {"text": "oven", "rank": "hamming"}]})
        client.post("/search", json={})
        page = client.get("/metrics").text
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["latentbits_requests_total", "/search", "200", "POST"] == 2
    assert values["latentbits_requests_total", "/search", "422", "POST"] == 1
    assert (values["latentbits_queries_total", "log-odds"], values["latentbits_queries_total", "hamming"]) == (2, 1)
    assert (values["latentbits_batch_queries_count",], values["latentbits_batch_queries_sum",]) == (2, 3)
    assert values["latentbits_index_documents",] == 300


@pytest.mark.parametrize("log_text", [False, True])
def test_logs_hold_the_texts_of_queries_only_where_that_is_asked_for(
    run: Path, caplog: pytest.LogCaptureFixture, log_text: bool
) -> None:
    with caplog.at_level(logging.DEBUG), serving(run / "index", log_text=log_text) as client:
        search(client, text="telescope comet")
        client.post("/search", json={"text": "telescope comet", "filter": "telescope"})
        client.post("/encode", json={"texts": ["telescope comet"]})
    ours = [record for record in caplog.records if record.name == "latentbits.service"]
    requests = [record.__dict__["facts"] for record in ours if record.getMessage() == "request"]
    assert [facts["status"] for facts in requests] == [200, 400, 200]
    assert all(facts["route"] in ("/search", "/encode") and facts["ms"] >= 0 for facts in requests)
    assert ("telescope comet" in str([record.__dict__ for record in ours])) is log_text


def test_every_request_of_the_schema_has_an_example_that_its_own_schema_accepts(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    parts = schema["components"]["schemas"]
    for name in ("Query", "Queries", "Additions", "Deletions", "Texts"):
        assert parts[name]["examples"], name
    assert set(schema["paths"]) >= {
        "/search",
        "/documents",
        "/documents/{id}",
        "/encode",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert search(client, **parts["Query"]["examples"][0])["rank"] == "log-odds"
    assert client.post("/encode", json=parts["Texts"]["examples"][0]).status_code == 200


def test_answers_have_the_fields_that_the_schema_says(client: TestClient) -> None:
    from pipelines.serving.requests import Answer, Codes

    Answer.model_validate(search(client, text="ship", explain=True))
    Answer.model_validate(search(client, text="qqqq"))
    Codes.model_validate(client.post("/encode", json={"texts": ["ship"]}).json())
