"""Requests to the page of tools/web_demo.py, as a browser makes them; and many of them at once:

python tests/tools/web_requests.py http://127.0.0.1:7860 picture.jpg --requests 50
"""

import argparse
import json
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

OPTIONS = {
    "task": "panoptic",
    "score": 0.5,
    "overlap": 0.7,
    "area": 0,
    "clean_up": 0,
    "color_blind": False,
}


def upload(client: httpx.Client, path: Path) -> str:
    """Where the server keeps the file."""
    response = client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
    response.raise_for_status()
    return response.json()[0]


def segment(client: httpx.Client, server_path: str, **options: object) -> tuple[str, dict]:
    """HTML and download button's update that the server answers with.

    Raises:
        httpx.HTTPStatusError: it does not queue the request.
        RuntimeError: it answers with an error; the message is gradio's.
    """
    config = client.get("/config").json()
    index = next(d["id"] for d in config["dependencies"] if d["api_name"] == "segment")
    session = uuid.uuid4().hex
    picture = {"path": server_path, "meta": {"_type": "gradio.FileData"}}
    data = [picture, *(OPTIONS | options).values()]
    body = {"data": data, "fn_index": index, "session_hash": session}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    answer: list = []
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if event.get("msg") == "process_generating":
                answer = answer or event["output"]["data"]
            elif event.get("msg") == "process_completed":
                if not event["success"]:
                    raise RuntimeError(event["output"].get("error"))
                answer = answer or event["output"]["data"]
    if not answer:
        raise RuntimeError("the answer ended early")
    return tuple(answer)


def load(url: str, path: Path, count: int) -> tuple[list[float], list[str]]:
    """Seconds of each of ``count`` requests made at once, and what went wrong with others."""

    def request(_: int) -> float | str:
        start = time.perf_counter()
        try:
            with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
                html, _ = segment(client, upload(client, path))
        except (httpx.HTTPError, RuntimeError) as error:
            return str(error)
        return time.perf_counter() - start if "<table>" in html else html

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(request, range(count)))
    return (
        [answer for answer in answers if isinstance(answer, float)],
        [answer for answer in answers if isinstance(answer, str)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--requests", type=int, default=50)
    args = parser.parse_args()
    start = time.perf_counter()
    seconds, failures = load(args.url, args.picture, args.requests)
    print(f"{len(seconds)} of {args.requests} answered in {time.perf_counter() - start:.1f} s")
    if seconds:
        print(f"median {statistics.median(seconds):.1f} s, slowest {max(seconds):.1f} s")
    for failure in set(failures):
        print(f"{failures.count(failure)} x {failure}")


if __name__ == "__main__":
    main()
