"""Procedural depth: a table, a wall, boxes, balls and an arm of capsules, ray-cast with numpy.

Made for three things that need depth without any file: the self-check of a codec, the `debug` preset and
the tests. It has no physics, no texture and no robot model; numbers measured on it say so.

Letters: T frames, H image height, W image width. World: metres, z up, the table is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth_scaling import scale_to_u8

Array = NDArray[np.float64]
_FAR_M = 4.0


@dataclass(frozen=True)
class Scene:
    """What stands still while the arm moves."""

    camera_m: Array
    """[3] position."""
    rotation: Array
    """[3,3] camera axes (right, down, forward) as rows, in world coordinates."""
    focal: float
    """Focal length over the image height."""
    wall_y_m: float
    boxes: tuple[tuple[Array, Array, float], ...]
    """Centre [3], half size [3], yaw in radians."""
    balls: tuple[tuple[Array, float], ...]
    """Centre [3], radius."""
    arm_base_m: Array
    arm_radius_m: float


def random_scene(rng: np.random.Generator) -> Scene:
    """Camera, furniture and objects drawn from ranges that look like a table-top robot."""
    camera = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-1.3, -0.7), rng.uniform(0.3, 1.1)])
    target = np.array([rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.2), rng.uniform(0.0, 0.2)])
    boxes = tuple(
        (
            np.array([rng.uniform(-0.45, 0.45), rng.uniform(-0.4, 0.4), half[2]]),
            half,
            float(rng.uniform(0, np.pi)),
        )
        for half in rng.uniform(0.02, 0.12, size=(rng.integers(1, 5), 3))
    )
    balls = tuple(
        (np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), radius]), float(radius))
        for radius in rng.uniform(0.02, 0.08, size=rng.integers(0, 4))
    )
    return Scene(
        camera_m=camera,
        rotation=_look_at(camera, target),
        focal=float(rng.uniform(0.7, 1.3)),
        wall_y_m=float(rng.uniform(0.6, 2.2)),
        boxes=boxes,
        balls=balls,
        arm_base_m=np.array([rng.uniform(-0.6, 0.6), rng.uniform(0.1, 0.55), 0.0]),
        arm_radius_m=float(rng.uniform(0.03, 0.06)),
    )


def _look_at(camera: Array, target: Array) -> Array:
    forward = (target - camera) / np.linalg.norm(target - camera)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def render_episode(
    scene: Scene, rng: np.random.Generator, *, num_frames: int, size: int
) -> NDArray[np.float32]:
    """Inverse depth 1/z [T,size,size] in 1/m, the arm's hand moving between random points."""
    waypoints = rng.uniform([-0.35, -0.35, 0.05], [0.35, 0.35, 0.5], size=(3, 3))
    progress = np.linspace(0.0, 2.0, num_frames)
    hands = [
        np.array([np.interp(p, [0, 1, 2], waypoints[:, axis]) for axis in range(3)])
        for p in progress
    ]
    rays = _rays(scene, size)
    still = np.minimum.reduce(_static_hits(scene, rays))
    frames = [np.minimum(still, _arm_hits(scene, rays, hand)) for hand in hands]
    return np.stack([1.0 / z for z in frames]).astype(np.float32)


def depth_maps(seed: int, num_maps: int, size: int) -> NDArray[np.uint8]:
    """`num_maps` maps of as many scenes, scaled per image: uint8 [num_maps,size,size]."""
    rng = np.random.default_rng(seed)
    maps = [
        render_episode(random_scene(rng), rng, num_frames=1, size=size)[0] for _ in range(num_maps)
    ]
    return scale_to_u8(np.stack(maps))


def _rays(scene: Scene, size: int) -> Array:
    """World directions [H,W,3] whose component along the optical axis is 1, so that distance is z."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(axis / scene.focal, axis / scene.focal)
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ scene.rotation


def _static_hits(scene: Scene, rays: Array) -> list[Array]:
    origin = scene.camera_m
    hits = [np.full(rays.shape[:2], _FAR_M)]
    hits.append(_plane(origin[2], rays[..., 2]))
    hits.append(_plane(origin[1] - scene.wall_y_m, rays[..., 1]))
    hits += [_box(origin, rays, *box) for box in scene.boxes]
    hits += [_ball(origin, rays, *ball) for ball in scene.balls]
    return hits


def _arm_hits(scene: Scene, rays: Array, hand: Array) -> Array:
    base, radius = scene.arm_base_m, scene.arm_radius_m
    up = np.array([0.0, 0.0, 1.0])
    shoulder = base + 0.35 * up
    elbow = (shoulder + hand) / 2 + 0.22 * up
    wrist = hand + 0.12 * up
    joints = [base, shoulder, elbow, wrist, hand]
    radii = [radius * 1.3, radius, radius * 0.9, radius * 0.6]
    links = zip(joints[:-1], joints[1:], radii, strict=True)
    return np.minimum.reduce([_capsule(scene.camera_m, rays, a, b, r) for a, b, r in links])


def _plane(height: float, slope: Array) -> Array:
    """Where height + t * slope = 0 in front of the camera, else far."""
    t = -height / np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    return np.where((t > 0) & (t < _FAR_M), t, _FAR_M)


def _ball(origin: Array, rays: Array, centre: Array, radius: float) -> Array:
    offset = origin - centre
    a = (rays**2).sum(-1)
    b = rays @ offset
    root = b**2 - a * (offset @ offset - radius**2)
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 0), t, _FAR_M)


def _box(origin: Array, rays: Array, centre: Array, half: Array, yaw: float) -> Array:
    cos, sin = np.cos(yaw), np.sin(yaw)
    to_box = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    o, d = (origin - centre) @ to_box, rays @ to_box
    d = np.where(np.abs(d) < 1e-9, 1e-9, d)
    near, far = (-half * np.sign(d) - o) / d, (half * np.sign(d) - o) / d
    enter, leave = near.max(-1), far.min(-1)
    return np.where((enter < leave) & (enter > 0), enter, _FAR_M)


def _capsule(origin: Array, rays: Array, a: Array, b: Array, radius: float) -> Array:
    """A cylinder between two balls."""
    axis = (b - a) / np.linalg.norm(b - a)
    offset = origin - a
    along_ray, along_offset = rays @ axis, float(offset @ axis)
    d = rays - along_ray[..., None] * axis
    o = offset - along_offset * axis
    qa, qb = (d**2).sum(-1), d @ o
    root = qb**2 - qa * (o @ o - radius**2)
    t = (-qb - np.sqrt(np.maximum(root, 0))) / np.maximum(qa, 1e-12)
    height = along_offset + t * along_ray
    side = (root > 0) & (t > 0) & (height > 0) & (height < np.linalg.norm(b - a))
    cylinder = np.where(side, t, _FAR_M)
    return np.minimum.reduce(
        [cylinder, _ball(origin, rays, a, radius), _ball(origin, rays, b, radius)]
    )
