"""A server with OpenAI's API in this process, which answers from a table."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

TOKENS = 256
"""Visual tokens of every picture."""


class Stub:
    """What the server knows, and what it was asked.

    Args:
        answers: Question -> answer.
        model: The name of its model.
        tricks: Question -> what happens instead: bytes are sent as they are, a tuple is a status
            and JSON, a number is seconds of waiting before the answer, a barrier is waited at, a
            function of the handler does it.
        prunes: Whether it keeps the share that a request asks for.
    """

    def __init__(self, answers, model="pocket", tricks=None, prunes=True):
        self.answers, self.model, self.tricks, self.prunes = answers, model, tricks or {}, prunes
        self.asked, self.headers, self.pictures = [], [], []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def questions(self):
        """The questions that were asked, but for the two that try out whether it prunes."""
        return [text(r) for r in self.asked if r["max_tokens"] > 1]

    def completion(self, request):
        share = request.get("mm_processor_kwargs", {}).get("fopru", {}).get("retention", 1.0)
        if not 0 < share <= 1:
            return 400, {"error": {"message": f"retention={share}: must be a number in (0, 1]."}}
        kept = round(TOKENS * share) if self.prunes else TOKENS
        return 200, {
            "choices": [
                {"message": {"content": self.answers[text(request)]}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 11 + kept, "completion_tokens": 2},
        }


def text(request):
    return request["messages"][0]["content"][1]["text"]


def picture(request):
    head, _, data = request["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def handler(stub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def send(self, status, found, **headers):
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            if self.path == "/metrics":
                gauges = f'vllm:num_requests_running{{engine="0"}} {stub.busy}\n'
                gauges += 'vllm:cache_config_info{num_gpu_blocks="64"} 1.0\n'
                self.send(200, f'{gauges}vllm:kv_cache_usage_perc{{engine="0"}} 0.5\n'.encode())
                return
            assert self.path == "/v1/models"
            names = [stub.model] if isinstance(stub.model, str) else stub.model
            self.send(200, {"data": [{"id": name} for name in names]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            with stub.lock:
                stub.asked.append(request)
                stub.headers.append(self.headers)
                stub.pictures.append(picture(request))
                stub.busy += 1
                stub.most = max(stub.most, stub.busy)
            try:
                self.reply(request)
            finally:
                with stub.lock:
                    stub.busy -= 1

        def reply(self, request):
            trick = stub.tricks.get(text(request))
            if callable(trick):
                trick(self)
            elif isinstance(trick, tuple):
                self.send(*trick)
            elif isinstance(trick, bytes):
                self.send(200, trick)
            else:
                if isinstance(trick, threading.Barrier):
                    trick.wait(timeout=60)
                else:
                    time.sleep(trick or 0)
                self.send(*stub.completion(request))

    return Handler


@contextmanager
def serving(stub, port=0):
    """Run a stub; the address of its server."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass  # clients that are gone

    with Server(("127.0.0.1", port), handler(stub)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
