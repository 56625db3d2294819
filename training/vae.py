"""Stage 1: the autoencoder, `AutoencoderKLFlux2` with 8 latent channels (32 after 2x2 patches), trained on drawn
scenes.

    python -m training.vae --run runs/vae --steps 1800

Loss: L1 + half the L1 of the gradients + a small KL; every fourth step decodes a 2x-pooled latent against the
2x-pooled picture, which keeps latents smooth over scale. --decoder-of polishes the decoder later, without changing a
latent, so that every network trained on them stays as it is; --night and --noise say on what, --keep how much of its
former weights stays: what networks leave in latents shows more in one that is trained for long. The batch-norm
statistics that the pipelines normalise with are measured at the end."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from numpy.typing import NDArray
from torch import Tensor, nn

from training.draw import BACKGROUNDS, SHAPES, VISIBLE, Scene, Thing, render
from training.optimiser import Average, BatchedMuon, cosine
from training.runs import Run, autocast, flush_denormals

CONFIG = {
    "block_out_channels": (16, 32, 48, 64),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 2,  # more groups leave two channels each and destroy flat colours
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 256,
}


def build() -> AutoencoderKLFlux2:
    """The autoencoder with fresh weights."""
    return AutoencoderKLFlux2(**CONFIG)


class _Normalise(torch.autograd.Function):
    """Group normalisation in float32 with a hand-written backward: the built-in one is half of a bfloat16 CPU step."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:  # type: ignore[no-untyped-def]
        n, c = x.shape[:2]
        count = x[0].numel() // groups
        mean = x.sum((2, 3), dtype=torch.float32).view(n, groups, -1).sum(-1) / count
        square = (x * x).sum((2, 3), dtype=torch.float32).view(n, groups, -1).sum(-1) / count
        variance = (square - mean * mean).clamp_min(0)  # one pass each: `var_mean` is ten times slower here
        rstd = (variance + eps).rsqrt()
        scale = (rstd[..., None] * weight.view(groups, -1)).view(n, c, 1, 1)
        shift = (bias.view(groups, -1) - mean[..., None] * rstd[..., None] * weight.view(groups, -1)).view(n, c, 1, 1)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return (x * scale.to(x.dtype)).add_(shift.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        x, weight, mean, rstd = ctx.saved_tensors
        groups, (n, c, h, w) = ctx.groups, x.shape
        per = c // groups
        sum_g = grad.sum((2, 3), dtype=torch.float32)  # (n, c)
        sum_gx = (grad * x).sum((2, 3), dtype=torch.float32)
        m, r = mean.repeat_interleave(per, 1), rstd.repeat_interleave(per, 1)
        d_weight = ((sum_gx - m * sum_g) * r).sum(0)
        d_bias = sum_g.sum(0)
        count = per * h * w
        a = (sum_g * weight).view(n, groups, per).sum(-1)  # sums of dy*weight and dy*weight*xhat per group
        b = (((sum_gx - m * sum_g) * r) * weight).view(n, groups, per).sum(-1)
        k1 = (rstd[..., None] * weight.view(groups, per)).view(n, c, 1, 1)
        k2 = (-(rstd**2) * b / count).repeat_interleave(per, 1).view(n, c, 1, 1)
        k3 = (-rstd * a / count + rstd**2 * b * mean / count).repeat_interleave(per, 1).view(n, c, 1, 1)
        d_x = (x * k2.to(x.dtype)).add_(grad * k1.to(x.dtype)).add_(k3.to(x.dtype))
        return d_x, d_weight, d_bias, None, None


def fast_group_norm(model: nn.Module) -> None:
    """Switches every GroupNorm of a model to the hand-written backward; outputs stay the same."""

    def forward(module: nn.GroupNorm, x: Tensor) -> Tensor:
        if x.ndim != 4:  # the attention block in the middle hands over (n, channels, tokens)
            return F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
        return _Normalise.apply(x, module.weight, module.bias, module.num_groups, module.eps)

    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(forward, module)  # type: ignore[method-assign]


def random_scene(rng: np.random.Generator, night: float = 0.0) -> Scene:
    """Any background with none to four things anywhere: the autoencoder should see more than the captions can say.

    night: the share of scenes that are night skies whatever else comes."""
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    if night and rng.random() < night:
        background = "night"
    things = []
    for _ in range(int(rng.choice([0, 1, 2, 3, 4], p=[0.05, 0.2, 0.3, 0.3, 0.15]))):
        colours = VISIBLE[background]
        x, y, radius = rng.uniform(0.12, 0.88), rng.uniform(0.12, 0.88), rng.uniform(0.06, 0.28)
        things.append(Thing(str(rng.choice(SHAPES)), str(rng.choice(colours)), x, y, radius))
    return Scene(tuple(things), background, int(rng.integers(1 << 30)))


def batch_from(pool: NDArray[np.uint8], rng: np.random.Generator, size: int, side: int) -> Tensor:
    """Pictures (size, 3, side, side) in -1..1: crops of the 256 px pool, or whole scenes reduced to 128 px then
    cropped."""
    pictures = []
    for index in rng.integers(len(pool), size=size):
        picture = pool[index]
        if rng.random() < 0.4:
            picture = picture.reshape(128, 2, 128, 2, 3).mean((1, 3)).astype(np.uint8)
        y, x = rng.integers(0, picture.shape[0] - side + 1, size=2)
        pictures.append(picture[y : y + side, x : x + side])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def picture_loss(made: Tensor, true: Tensor) -> Tensor:
    """L1 plus half the L1 of horizontal and vertical differences: the second term is what makes outlines crisp."""
    error = made.float() - true
    return error.abs().mean() + 0.5 * ((error.diff(dim=-1)).abs().mean() + (error.diff(dim=-2)).abs().mean())


def encode(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in -1..1 to normalised latents (n, 32, h/16, w/16), exactly as the pipelines do."""
    latents = patchify(vae.encode(pictures).latent_dist.mode())
    mean, std = statistics(vae)
    return (latents - mean) / std


def decode(vae: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
    """The inverse of encode: normalised latents to pictures in -1..1."""
    mean, std = statistics(vae)
    return vae.decode(unpatchify(latents * std + mean)).sample


def statistics(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of patchified latents, each (1, 32, 1, 1)."""
    return vae.bn.running_mean.view(1, -1, 1, 1), (
        vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    ).sqrt()


def patchify(z: Tensor) -> Tensor:
    """(n, c, h, w) to (n, 4c, h/2, w/2): channel-major, then row, then column of the 2x2 patch."""
    n, c, h, w = z.shape
    return z.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unpatchify(z: Tensor) -> Tensor:
    """The inverse of patchify."""
    n, c, h, w = z.shape
    return z.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLFlux2, pool: NDArray[np.uint8], batches: int = 24) -> None:
    """Sets the batch-norm statistics from whole scenes at 256 px."""
    rng = np.random.default_rng(5)
    latents = torch.cat(
        [patchify(vae.encode(batch_from(pool, rng, 8, 128)).latent_dist.mode()) for _ in range(batches)]
    )
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


@torch.no_grad()
def psnr(vae: AutoencoderKLFlux2, count: int = 48) -> tuple[float, float]:
    """Mean and worst PSNR in dB over unseen 256 px scenes."""
    rng, values = np.random.default_rng(99), []
    for _ in range(count):
        picture = torch.from_numpy(render(random_scene(rng), 256, 256)).permute(2, 0, 1)[None].float() / 127.5 - 1
        made = vae.decode(vae.encode(picture).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(10 * np.log10(4 / float((made - picture).square().mean())))
    return float(np.mean(values)), float(np.min(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/vae"))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--decoder-of", type=Path, help="train only the decoder of a finished autoencoder: latents stay"
    )
    parser.add_argument("--night", type=float, default=0.0, help="share of night skies beside those that come anyway")
    parser.add_argument("--noise", type=float, default=1.0, help="how much of the latents' own noise the decoder sees")
    parser.add_argument("--keep", type=float, default=0.0, help="share of the former decoder in the average at the end")
    options = parser.parse_args()
    flush_denormals()
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    pool = np.stack([render(random_scene(rng, options.night), 256, 256) for _ in range(options.scenes)])
    vae = AutoencoderKLFlux2.from_pretrained(options.decoder_of) if options.decoder_of else build()
    vae = vae.train().to(options.device, memory_format=torch.channels_last)
    if options.decoder_of:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    fast_group_norm(vae)
    named = [(name, p) for name, p in vae.named_parameters() if not name.startswith("bn.") and p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and "conv_in" not in name and "conv_out" not in name]
    chosen = {id(p) for p in matrices}
    optimiser = BatchedMuon(matrices, [p for _, p in named if id(p) not in chosen], lr=options.lr)
    average = Average(vae, 0.995)
    run, step, seen = Run(options.run, options.steps), 0, 0
    state = run.resume() if options.resume else None
    if state:
        vae.load_state_dict(state["model"])
        average.values, average.count, step, seen = state["average"], state["step"], state["step"], state["seen"]
    while step < options.steps:
        side, size = (
            (64, 2 * options.batch) if run.progress(step) < 0.4 and not options.decoder_of else (128, options.batch)
        )
        pictures = batch_from(pool, rng, size, side).to(options.device, memory_format=torch.channels_last)
        with autocast(options.device):
            posterior = vae.encode(pictures).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + options.noise * torch.randn_like(mean) * (0.5 * logvar).exp()
            if step % 4 == 3:
                z, pictures = F.avg_pool2d(z, 2), F.avg_pool2d(pictures, 2)
            made = vae.decode(z).sample
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = picture_loss(made, pictures)
        (loss + options.kl * kl).backward()
        optimiser.step(cosine(run.progress(step)))
        average.update(vae)
        step, seen = step + 1, seen + size
        if step % 50 == 0:
            run.log(step=step, seen=seen, side=side, loss=round(loss.item(), 4), kl=round(kl.item(), 3))
        if run.due():
            run.save({"model": vae.state_dict(), "average": average.values, "step": step, "seen": seen})
    average.copy_to(vae)
    run.save({"model": vae.state_dict(), "average": average.values, "step": step, "seen": seen})
    vae = vae.float().cpu().eval()
    if options.decoder_of and options.keep:
        former = AutoencoderKLFlux2.from_pretrained(options.decoder_of).float()
        with torch.no_grad():
            for mine, before in zip(vae.parameters(), former.parameters(), strict=True):
                mine.lerp_(before, options.keep)  # the encoder's are equal
    if not options.decoder_of:
        measure_statistics(vae, pool)
    mean_db, worst_db = psnr(vae)
    run.log(step=step, psnr_mean=round(mean_db, 2), psnr_min=round(worst_db, 2))
    vae.save_pretrained(options.run / "vae")


if __name__ == "__main__":
    main()
