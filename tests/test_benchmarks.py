"""The benchmarks: what they race is what they say, and README's table is theirs."""

import json

import helpers
import jax
import numpy as np
import pytest
import torch

from benchmarks import (
    contestants,
    end_to_end,
    reference_torch,
    report,
    table,
    torch_input,
    torch_tricks,
    train_step,
)
from configs import pretrain
from unipt_jax import flops
from unipt_jax.errors import UserError

SIZE = 32, 16


def small(tower: str, batch: int, dtype: str):
    """The paper's pre-training with towers of one layer, 16 wide."""
    config = pretrain.get_config("paper").unlock()
    config.batch_size, config.model.dtype = batch, dtype
    config.model.image.height, config.model.image.width = SIZE
    for part in (config.model.image, config.model.text):
        part.update(features=16, layers=1, heads=2, hidden=32)
    config.model.embedding, config.data.lengths = 16, (48, 100)
    return config.lock()


@pytest.fixture
def small_towers(monkeypatch):
    """The benchmarks race towers of one layer, compiled as suits those."""
    monkeypatch.setattr(contestants, "paper", small)
    monkeypatch.setattr(jax, "jit", helpers.quick_jit)


def reference(kind: str, dtype: str = "float32") -> reference_torch.Reference:
    config = small("vit_b16", 3, dtype)
    options = dict(total=10, device="cpu", threads=1)
    return reference_torch.Reference(config, kind, contestants.BERT, **options)


def passes(kind: str, lengths: tuple[int, ...]) -> tuple[list, list, list]:
    """Shapes that the image tower, the text tower and the MLM head read in a step."""
    racer, shapes = reference(kind), ([], [], [])
    parts = racer.model.image, racer.model.text, racer.model.mlm_transform

    def see(seen: list):
        return lambda module, args: seen.append(tuple(args[0].shape))

    for part, seen in zip(parts, shapes, strict=True):
        part.register_forward_pre_hook(see(seen))
    (batch,) = contestants.draw(3, 1, lengths, SIZE)
    racer.step(racer.prepare(batch), wait=True)
    return shapes


def test_eager_reads_texts_twice_at_full_length_and_guesses_at_every_place():
    images, texts, guesses = passes("eager", (100,))
    assert images == [(3, 3, *SIZE)]
    assert texts == [(3, 100)] * 2
    assert guesses == [(3, 100, 16)]


def test_released_reads_images_twice_and_guesses_at_every_place():
    images, texts, guesses = passes("released", (100,))
    assert images == [(3, 3, *SIZE)] * 2
    assert texts == [(3, 100)] * 2
    assert guesses == [(3, 100, 16)]


def test_expert_reads_once_what_is_short_and_guesses_at_masked_places_alone():
    images, texts, guesses = passes("expert", (32, 48, 64, 100))
    assert images == [(3, 3, *SIZE)]
    assert texts == [(6, 48)]
    assert guesses == [(3, round(0.15 * 46), 16)]


def test_released_has_a_head_of_its_own_and_its_maximum_reads_padding():
    released, eager = reference("released").model, reference("eager").model
    count = sum(p.numel() for p in released.parameters())
    assert count - sum(p.numel() for p in eager.parameters()) == 30_522 * 16
    features = torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    x = eager.text_projection(features)
    whole = torch.nn.functional.normalize(x.amax(1), dim=-1)
    torch.testing.assert_close(eager.embed_text(features, None), whole)
    short = torch.nn.functional.normalize(x[1, :3].amax(0), dim=-1)
    torch.testing.assert_close(eager.embed_text(features, mask)[1], short)


def test_onednn_gives_the_losses_and_steps_of_the_expert_without_it():
    (batch,) = contestants.draw(3, 1, (48, 100), SIZE)
    racers = [reference(kind) for kind in ("expert", "expert_onednn")]
    losses = []
    for racer in racers:
        torch.manual_seed(1)
        prepared = racer.prepare(batch)
        losses.append([racer.step(prepared, wait=True) for _ in range(2)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # order of sums


def test_expert_in_bfloat16_keeps_float32_weights_and_multiplies_in_bfloat16():
    racer, seen = reference("expert", "bfloat16"), []
    layer = racer.model.image_projection
    layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    (batch,) = contestants.draw(3, 1, (48, 100), SIZE)
    racer.step(racer.prepare(batch), wait=True)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in racer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cheap_dropout_drops_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Dropout(0.1))
    torch_tricks.use_cheap_dropout(layer)
    x = torch.ones(1001, 1003, dtype=dtype, requires_grad=True)  # not a multiple of 4
    y = layer(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(0.1, abs=5 * (0.09 / x.numel()) ** 0.5)
    kept = y[y != 0].double()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.9), rtol=4e-3, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert layer.eval()(x) is x


def test_texts_are_20_to_45_tokens_and_the_same_whatever_they_are_padded_to():
    short = contestants.draw(64, 2, (32, 48, 100), SIZE)
    long = contestants.draw(64, 2, (100,), SIZE)
    counts = np.concatenate([(ids != contestants.BERT.pad).sum(1) for _, ids in long])
    assert (counts.min(), counts.max()) == (20, 45)
    for (image, ids), (same, padded) in zip(short, long, strict=True):
        np.testing.assert_array_equal(image, same)
        assert ids.shape == (64, 48)
        assert padded.shape == (64, 100)
        np.testing.assert_array_equal(padded[:, :48], ids)
        assert not padded[:, 48:].any()


def test_train_step_races_all_ways_on_the_same_task(small_towers, capsys):
    options = ["--batch", "3", "--repeats", "1"]
    args = train_step.arguments(options)
    report.finish(train_step.compare(args))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = result["dtypes"]["float32"]
    assert set(figures["seconds"]) == set(train_step.NAMES)
    for loss in figures["first_loss"].values():  # 16 random features
        assert loss == pytest.approx(figures["chance_loss"], abs=2)
    for name, length in figures["text_length"].items():
        assert length == [100 if name in ("eager", "released") else 48]
    assert table.render([result]).count("`released`") == 1


def test_ratios_of_bfloat16_say_so_beside_those_of_float32(monkeypatch):
    seconds = {
        "float32": {"ours": 2.0, "expert": 5.0, "released": 7.0},
        "bfloat16": {"ours": 1.0, "expert": 1.5, "released": 3.0},
    }

    def race(args, dtype, threads):
        return {"seconds": seconds[dtype]}

    monkeypatch.setattr(train_step, "race", race)
    monkeypatch.setattr(contestants, "release", lambda: None)
    of_bfloat16 = {"ratio_expert_bf16": 1.5, "ratio_released_bf16": 3.0}
    for dtype, expected in (
        ("float32", {"ratio_expert": 2.5, "ratio_released": 3.5}),
        ("bfloat16", {"ratio_expert": 1.5, "ratio_released": 3.0} | of_bfloat16),
        ("both", {"ratio_expert": 2.5, "ratio_released": 3.5} | of_bfloat16),
    ):
        result = train_step.compare(train_step.arguments(["--dtype", dtype]))
        ratios = {k: v for k, v in result.items() if k.startswith("ratio_")}
        assert ratios == expected


def test_end_to_end_trains_from_records_in_each_way(small_towers):
    options = ["--batch", "3", "--images", "16", "--steps", "2", "--repeats", "1"]
    args = end_to_end.arguments([*options, "--workers", "0"])
    result = end_to_end.compare(args)
    speed = result["images_per_second"]
    assert result["ratio"] == pytest.approx(speed["ours"] / speed["torch"], rel=0.01)
    lost = 1 - speed["ours"] / speed["resident"]
    assert result["input_loss"] == pytest.approx(lost, abs=0.01)
    hours = 1_300_000 * 15 / speed["ours"] / 3600
    assert result["projected_hours"]["ours"] == pytest.approx(hours, rel=0.01)


def test_loader_reads_every_picture_once_an_epoch_with_its_own_text(tmp_path):
    from PIL import Image

    files, ids = [], []
    for index in range(6):
        files.append(tmp_path / f"{index}.png")
        Image.new("RGB", (4, 8), (index, 0, 0)).save(files[-1])
        ids.append(np.full(3 + index, index + 1, np.int32))
    data = torch_input.Pictures(files, ids)
    collate = torch_input.Collate((6, 4, 100), pad=0)
    stream = iter(torch_input.loader(data, collate, batch=2, workers=0, pinned=False))
    for _ in range(2):
        seen = []
        for pixels, tokens in (next(stream) for _ in range(3)):
            assert pixels.shape == (2, 8, 4, 3)
            assert pixels.dtype == torch.uint8
            number = pixels[:, 0, 0, 0].tolist()
            longest = max(number) + 3
            assert tokens.shape[1] == min(n for n in (4, 6, 100) if n >= longest)
            for row, n in zip(tokens.tolist(), number, strict=True):
                assert row == [n + 1] * (n + 3) + [0] * (len(row) - n - 3)
            seen += number
        assert sorted(seen) == list(range(6))


def test_utilisation_is_the_models_operations_over_time_and_peak(monkeypatch):
    config, lengths = small("vit_b16", 3, "float32"), np.array([20, 30, 45])
    model = contestants.build(config, contestants.BERT)
    losses = ("contrastive", "mlm")
    one = flops.step(model, lengths, losses=losses, mlm_rate=0.15)
    other = flops.step(model, lengths - 1, losses=losses, mlm_rate=0.15)
    monkeypatch.setattr(flops, "device_peak", lambda kind, dtype: 8e9)
    seconds = {"ours": 0.5, "expert": 2.0}
    figures = contestants.utilisation(config, [lengths, lengths - 1], seconds)
    for name, value in seconds.items():
        share = 100 * (one + other) / 2 / value / 8e9
        assert figures["mfu"][name] == pytest.approx(share, abs=0.006)
    monkeypatch.setattr(flops, "device_peak", lambda kind, dtype: None)
    assert "mfu" not in contestants.utilisation(config, [lengths], seconds)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cpu", "rank.json"),
        ("NVIDIA H200", "rank.h200.json"),
        ("NVIDIA A100-SXM4-40GB", "rank.a100_sxm4_40gb.json"),
        ("TPU v5 lite", "rank.tpu_v5_lite.json"),
    ],
)
def test_results_of_devices_stand_side_by_side(kind, name):
    assert report.result_file("rank", kind) == report.RESULTS / name


def test_readmes_table_is_what_the_results_give():
    text = table.README.read_text()
    assert table.insert(text, table.render(table.read())) == text


def test_table_has_a_section_for_each_machine():
    here = next(r for r in table.read() if r["benchmark"] == "train_step")
    gpu = json.loads(json.dumps(here)) | {"device": "NVIDIA H200", "cores": 16}
    for figures in gpu["dtypes"].values():
        figures["mfu"] = dict.fromkeys(figures["seconds"], 51.23)
    text = table.render([here, gpu])
    assert text.count("| benchmark | what | ours | reference | times as fast |") == 2
    assert "On NVIDIA H200, 16 cores, " in text
    assert "MFU 51.2%" in text.partition("H200")[2]


def test_results_without_a_place_in_the_table_are_refused():
    with pytest.raises(UserError, match="'juggling' have no place"):
        table.render([{"benchmark": "juggling"}])


def test_a_readme_without_the_two_comments_is_refused():
    for text in ("", table.BEGIN, f"{table.END} {table.BEGIN}", 2 * table.BEGIN):
        with pytest.raises(UserError, match="once each"):
            table.insert(text, "table")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.54213, "0.542"), (0.9996, "1.00"), (4.0575, "4.06"), (9.996, "10.0"),
     (14.92, "14.9"), (99.96, "100"), (6590.0, "6,590")],
)  # fmt: skip
def test_figures_have_three_digits(value, text):
    assert table.digits(value) == text


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="must be 1 or more"):
        train_step.arguments(["--batch", "-1"])
    with pytest.raises(UserError, match="less than one --batch 8"):
        end_to_end.arguments(["--images", "3"])
    with pytest.raises(UserError, match="10000, but this process has"):
        contestants.limit_threads(10_000)
