"""Fetching pictures politely beside a plain thread pool, on a local server, in one run.

    python benchmarks/web_pictures.py [--pictures 2000] [--threads 16]

The plain pool asks, and keeps what it gets, without a check. Ours decodes every picture, keeps a verdict for each
dead link, asks a host at most `--per-host` times at once and refuses private addresses.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from molmoact_data.web.pictures import FetchConfig, PictureFetcher


def picture() -> bytes:
    rgb = (
        np.random.default_rng(0)
        .integers(0, 256, (24, 32, 3), dtype=np.uint8)
        .repeat(10, 0)
        .repeat(10, 1)
    )
    encoded = io.BytesIO()
    Image.fromarray(rgb).save(encoded, "JPEG")
    return encoded.getvalue()


def serve(content: bytes, delay_s: float) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(delay_s)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def seconds(fetch, urls: list[str], threads: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fetch, urls))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument(
        "--delay-ms", type=float, default=50, help="of the server, as a distant one has it"
    )
    args = parser.parse_args()
    server = serve(picture(), args.delay_ms / 1000)
    host = f"127.0.0.1:{server.server_address[1]}"
    urls = [f"http://{host}/{i}.jpg" for i in range(args.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)

        def plain(url: str) -> None:
            (kept / url.rpartition("/")[2]).write_bytes(requests.get(url, timeout=10).content)

        config = FetchConfig(per_host=args.threads, private_hosts=(host,))
        ours = PictureFetcher(kept / "ours", config)
        plain_s = seconds(plain, urls, args.threads)
        ours_s = seconds(ours.fetch, urls, args.threads)
        again_s = seconds(ours.fetch, urls, args.threads)
    server.shutdown()
    rows = {"plain thread pool": plain_s, "ours, first time": ours_s, "ours, kept already": again_s}
    for name, took in rows.items():
        print(f"{name:20} {args.pictures / took:10,.0f} pictures/s   {plain_s / took:5.2f} x")


if __name__ == "__main__":
    main()
