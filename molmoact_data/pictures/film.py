"""Labels as pictures: depth from codes, overlays, contact sheets, an episode as a film.

Pictures are RGB uint8 [H,W,3]. Reads a finished output; models come from the registry when a depth
picture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_new_file, new_file, write_bytes
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.outputs.output import EpisodeRows, Output
from molmoact_data.pictures.actions import INK_RGB, PAPER_RGB, action_strip
from molmoact_data.pictures.images import decode_image
from molmoact_data.pictures.overlay import draw_labels
from molmoact_data.teachers import registry
from molmoact_data.teachers.codebook import codebook_path
from molmoact_data.teachers.knowledge import warn_of_strange_labels
from molmoact_data.text.tokens import codes_in

Rgb = NDArray[np.uint8]

ROW_HEIGHT = 256
WORDS_HEIGHT = 22
CODES_NAME = "depth from codes"
VIDEO_SUFFIX = ".mp4"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def depth_picture(depth_HW: NDArray[np.floating]) -> Rgb:
    """Relative depth -> colours over its own range, near = bright."""
    import cv2

    low, high = float(depth_HW.min()), float(depth_HW.max())
    scaled = (depth_HW - low) / max(high - low, 1e-8) * 255
    bgr = cv2.applyColorMap(np.rint(scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def codes_picture(codes: Sequence[int], tokenizer: DepthTokenizer) -> Rgb:
    """What the codes of one frame say about depth. Raises UserError for a wrong number or id."""
    wanted = tokenizer.grid_hw[0] * tokenizer.grid_hw[1]
    if len(codes) != wanted:
        raise UserError(f"the VQ-VAE reads {wanted} codes, got {len(codes)}")
    if min(codes) < 0 or max(codes) >= tokenizer.codebook_size:
        raise UserError(f"codes must be 0..{tokenizer.codebook_size - 1}, got {max(codes)}")
    return depth_picture(tokenizer.decode(np.array([codes], dtype=np.int64))[0])


def to_height(rgb_HWC: Rgb, height: int = ROW_HEIGHT) -> Rgb:
    """The same picture, `height` pixels tall."""
    import cv2

    width = max(1, round(rgb_HWC.shape[1] * height / rgb_HWC.shape[0]))
    method = cv2.INTER_AREA if height < rgb_HWC.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(rgb_HWC, (width, height), interpolation=method).astype(np.uint8, copy=False)


def side_by_side(pictures: Mapping[str, Rgb], caption: str) -> Rgb:
    """Pictures of one frame in a row, their names above them and below the lines of the caption."""
    shown = {name: to_height(picture) for name, picture in pictures.items()}
    names = [_words(name, picture.shape[1]) for name, picture in shown.items()]
    row = np.concatenate(list(shown.values()), axis=1)
    below = [_words(line, row.shape[1]) for line in caption.split("\n")]
    return np.concatenate([np.concatenate(names, axis=1), row, *below], axis=0)


def caption_of(words: Sequence[str], instruction: str) -> str:
    """What is known of a frame, and on a line of its own what was asked."""
    return "   ".join(words) + "\n" + " ".join(instruction.split())


def frame_name(episode: int, frame: int) -> str:
    """How every picture for people names a frame."""
    return f"episode {episode}, frame {frame}"


def contact_sheet(tiles: Sequence[Rgb], columns: int) -> Rgb:
    """Tiles in rows of `columns`, with paper between them and where there is none."""
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    height = max(tile.shape[0] for tile in tiles) + 8
    width = max(tile.shape[1] for tile in tiles) + 8
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), PAPER_RGB, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * height + 4, (i % columns) * width + 4
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def episode_tiles(
    output: Output, episode: int, *, tokenizer: DepthTokenizer | None, frames: int | None = None
) -> Iterator[Rgb]:
    """One captioned picture per frame: all cameras, labels drawn on the first, depth where asked for.

    `frames` = at most so many, evenly spaced; None = all, in order. Raises UserError for an episode that
    is not in the output.
    """
    rows = _find(output, episode)
    length = rows.num_rows
    wanted = set(
        range(length)
        if frames is None
        else np.linspace(0, length - 1, min(frames, length)).astype(int)
    )
    for batch in rows.batches(batch_rows=32):
        for row in batch.to_pylist():
            if row[schema.FRAME_INDEX] in wanted:
                yield frame_tile(row, output.layout.cameras, tokenizer)


def frame_tile(
    row: Mapping[str, Any], cameras: Sequence[str], tokenizer: DepthTokenizer | None
) -> Rgb:
    """One record as a captioned picture."""
    pictures = {role: decode_image(row[schema.image_column(role)]["bytes"]) for role in cameras}
    pictures[cameras[0]] = draw_labels(
        pictures[cameras[0]],
        traces=row.get(schema.TRACE) or [],
        points=row.get(schema.GRIPPER_POINTS) or [],
    )
    if tokenizer is not None:
        if schema.DEPTH_CODES not in row:
            raise UserError("this output has no depth codes, so there is no depth to show")
        pictures[CODES_NAME] = codes_picture(row[schema.DEPTH_CODES], tokenizer)
    words = [frame_name(row[schema.EPISODE_INDEX], row[schema.FRAME_INDEX])]
    if schema.TRACE_QUALITY in row:
        reason = row[schema.TRACE_REJECT_REASON]
        words.append(f"no trace: {reason}" if reason else f"trace {row[schema.TRACE_QUALITY]:.2f}")
    return side_by_side(pictures, caption_of(words, row[schema.INSTRUCTION]))


def write_picture(path: Path, rgb_HWC: Rgb) -> None:
    """PNG or JPEG by the name's ending."""
    import cv2

    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{path.name}: pictures end in {', '.join(PICTURE_SUFFIXES)}")
    encoded = cv2.imencode(path.suffix.lower(), cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR))[1]
    write_bytes(path, encoded.tobytes())


def write_video(
    path: Path, frames: Iterable[Rgb], fps: float, encoder: Mapping[str, str] | None = None
) -> int:
    """H.264 mp4, yuv420p; returns the number of frames. All frames must have the size of the first.

    An odd last row or column is left out. `encoder`: options of libx264, `crf` for one. The file is there whole or
    not at all.
    """
    import av

    count = 0
    with new_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps) or 1, options=dict(encoder or {}))
        for rgb in frames:
            even = rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]
            if count == 0:
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode(None))
    return count


def refuse_existing(path: Path, *, overwrite: bool) -> Path:
    """The path, if writing to it destroys nothing that was not offered and its kind is known."""
    if path.suffix.lower() not in (VIDEO_SUFFIX, *PICTURE_SUFFIXES):
        known = ", ".join((VIDEO_SUFFIX, *PICTURE_SUFFIXES))
        raise UserError(f"{path} has no ending that says what to write: {known}.")
    check_new_file(path, overwrite=overwrite)
    return path


def load_tokenizer(path: str, device: str) -> DepthTokenizer:
    """The VQ-VAE at a path, `released` or `embedded`."""
    place = codebook_path(path)  # before torch is imported
    factory = registry.resolve("depth tokenizer", "vqvae", registry.DEPTH_TOKENIZERS)
    return factory(place, device=device)


def show_codes(path: Path, text: str, tokenizer: DepthTokenizer | None) -> int:
    """Write the depth that a token string, or a list of integers, stands for; returns the number of maps."""
    if tokenizer is None:
        raise UserError("--tokens needs --vqvae: codes mean nothing without their codebook.")
    pictures = [to_height(codes_picture(codes, tokenizer), 320) for codes in codes_in(text)]
    write_picture(path, contact_sheet(pictures, min(4, len(pictures))))
    return len(pictures)


def show_episode(
    path: Path,
    output: str,
    episode: int,
    *,
    tokenizer: DepthTokenizer | None,
    frames: int,
    columns: int,
) -> int:
    """Write one episode of an output: every frame as a film, or some on a contact sheet; returns their number."""
    opened = Output.open(output)
    shown = {} if tokenizer is None else {"codebook_shown": tokenizer.describe()}
    warn_of_strange_labels(opened.manifest, shown)
    if path.suffix.lower() == VIDEO_SUFFIX:
        fps = opened.manifest.dataset.fps
        if fps is None:
            raise UserError(
                f"{output} merges datasets of different fps, so a film of it has none. Write a .png."
            )
        every = episode_tiles(opened, episode, tokenizer=tokenizer)
        return write_video(path, _over_actions(opened, episode, every), fps)
    tiles = list(episode_tiles(opened, episode, tokenizer=tokenizer, frames=frames))
    write_picture(path, contact_sheet(tiles, columns))
    return len(tiles)


def _over_actions(output: Output, episode: int, tiles: Iterable[Rgb]) -> Iterator[Rgb]:
    """Every frame above the recorded actions of its episode; as it is where the output has none."""
    actions_TD = recorded_actions(output, episode)
    for step, tile in enumerate(tiles):
        if actions_TD is None:
            yield tile
            continue
        names = output.manifest.dataset.action_names
        strip = action_strip(actions_TD, step, names, tile.shape[1])
        yield np.concatenate([tile, strip], axis=0)


def recorded_actions(output: Output, episode: int) -> NDArray[np.float32] | None:
    """[T, D] in the order of the frames; None for an output without actions."""
    if output.layout.action_dim is None:
        return None
    batches = _find(output, episode).batches([schema.ACTION])
    found = [values for batch in batches for values in batch[schema.ACTION].to_pylist()]
    return np.array(found, dtype=np.float32)


def _find(output: Output, episode: int) -> EpisodeRows:
    known = []
    for rows in output.episodes():
        if rows.index == episode:
            return rows
        known.append(rows.index)
    raise UserError(
        f"episode {episode} is not in {output.storage.root}; it holds {len(known)} episodes "
        f"from {min(known, default=0)} to {max(known, default=0)}."
    )


def _words(text: str, width: int) -> Rgb:
    """One line, in smaller letters where it would be cut off, down to half their size."""
    import cv2

    font, usual, left = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 6
    strip = np.full((WORDS_HEIGHT, width, 3), PAPER_RGB, dtype=np.uint8)
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know ASCII only
    needed = cv2.getTextSize(plain, font, usual, 1)[0][0]
    size = usual * min(1.0, max(0.5, (width - 2 * left) / max(needed, 1)))
    cv2.putText(strip, plain, (left, 15), font, size, INK_RGB, 1, cv2.LINE_AA)
    return strip
