"""What people do with models of transformers, done with ours: compile, LoRA, pipelines, Trainer, lm-eval, bfloat16."""

from __future__ import annotations

import warnings

import pytest
import torch
from streams import SMALL, small_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import Dataset

from mnemonist.data import ByteTokenizer
from mnemonist.models import LanguageModel, MnemonistForCausalLM, register

register()
TEXT = "the cat sat on the mat; the dog sat on the cat; " * 3

DEPRECATED = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing`:FutureWarning")  # the name until v6


def bytes_model(**changes: object) -> MnemonistForCausalLM:
    torch.manual_seed(0)
    return MnemonistForCausalLM.from_language_model(LanguageModel(SMALL.replace(vocab_size=259, **changes)).eval())


@pytest.fixture
def folder(tmp_path):
    """A folder of a byte model with its tokenizer."""
    bytes_model(blocks=("mag", "mac")).model.save(tmp_path / "model")
    return tmp_path / "model"


# --- torch.compile


@pytest.mark.filterwarnings("ignore")
def test_compiled_it_is_the_same_and_no_loop_is_unrolled():
    torch._dynamo.reset()
    model = MnemonistForCausalLM.from_language_model(small_model(torch.float32, blocks=("mac", "mal")))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    work = []
    for T in (8, 8, 24, 96, 7):  # chunks of 5 tokens, segments of 4
        ids = torch.randint(0, 17, (2, T), generator=torch.Generator().manual_seed(T))
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        losses, gradients = [], []
        for form in (model, compiled):
            model.zero_grad()
            losses.append(form(ids, mask, labels=ids).loss)
            losses[-1].backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
        work.append((counter.frame_count, len([node for graph in counter.graphs for node in graph.graph.nodes])))
    assert work[0] == work[1], "the same shapes are compiled once"
    assert work[2] == work[-1], "one more time for any length, and never again"
    assert 0 < work[-1][1] < 600, "as many operations as layers have, not as texts have chunks"
    torch._dynamo.reset()


# --- PEFT


@DEPRECATED
def test_lora_tunes_and_merges(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = bytes_model(blocks=("mag", "mac"))
    before = base.model.fingerprint()
    names = ["in_proj", "out_proj", "gate_up", "down"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".")[-1] for name in trained} == set(names)

    ids = torch.from_numpy(ByteTokenizer().encode(TEXT, bos=True))[None]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.03  # the embeddings, which decide most, are frozen
    made = model.generate(input_ids=ids[:, :9], max_new_tokens=5, do_sample=False)
    assert made.shape == (1, 14)

    model.eval()
    with torch.no_grad():
        model.save_pretrained(tmp_path)
        fresh = bytes_model(blocks=("mag", "mac"))
        assert fresh.model.fingerprint() == before, "the base is as it was"
        # In double precision: the same products on other addresses round otherwise, and a memory's norms amplify that.
        again = PeftModel.from_pretrained(fresh, tmp_path).eval().double()
        tuned = model.double()(input_ids=ids).logits
        torch.testing.assert_close(again(input_ids=ids).logits, tuned)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, tuned)
    assert isinstance(merged.model, LanguageModel)
    merged.model.save(tmp_path / "merged")
    assert LanguageModel.load(tmp_path / "merged").fingerprint() == merged.model.fingerprint()


# --- pipelines, Trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pipeline_from_the_folder(folder):
    from transformers import pipeline

    write = pipeline("text-generation", model=str(folder), device="cpu")
    prompts = ["the cat", "a dog sat on"]
    alone = [
        write(p, max_new_tokens=6, do_sample=False, return_tensors=True)[0]["generated_token_ids"] for p in prompts
    ]
    model = MnemonistForCausalLM.from_pretrained(folder).eval()
    for prompt, ids in zip(prompts, alone, strict=True):
        start = torch.from_numpy(ByteTokenizer().encode(prompt, bos=True))[None]
        assert ids == model.generate(start, max_new_tokens=6, do_sample=False)[0].tolist()
    batch = write(prompts, max_new_tokens=6, do_sample=False, batch_size=2, return_tensors=True)
    for (together,), ids in zip(batch, alone, strict=True):
        assert [i for i in together["generated_token_ids"] if i != ByteTokenizer.pad_id] == ids


def test_generation_ends_at_a_string(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer("the cat", return_tensors="pt")
    ids = model.generate(**start, max_new_tokens=12, do_sample=False)[0, start["input_ids"].shape[1] :]
    free = tokenizer.decode(ids)
    stop = next(character for character in free if character.isascii())  # a whole one, whatever bytes are around it
    made = model.generate(**start, max_new_tokens=12, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    assert tokenizer.decode(made[0, start["input_ids"].shape[1] :]) == free[: free.index(stop) + 1]


class Rows(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(ByteTokenizer().encode(TEXT[index : index + 40], bos=True))
        return {"input_ids": ids, "labels": ids}


@DEPRECATED
def test_the_trainer_of_transformers(tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, learning_rate=0.02,
        logging_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, gradient_checkpointing=True,
        seed=0,
    )  # fmt: skip
    trainer = Trainer(model=bytes_model(blocks=("mag", "mac")), args=arguments, train_dataset=Rows())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.2
    trainer.save_model(str(tmp_path / "model"))
    again = LanguageModel.load(tmp_path / "model")
    assert again.fingerprint() == trainer.model.model.fingerprint()


# --- lm-eval


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_scores_what_the_model_says(folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    judge = HFLM(pretrained=str(folder), device="cpu", batch_size=2, max_length=256)
    model = LanguageModel.load(folder).eval()
    pairs = [("the cat", " sat"), ("a", " dog"), ("the dog sat on the", " mat")]
    found = judge.loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True
    )
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        start = ByteTokenizer().encode(context, bos=True)
        ids = torch.from_numpy(ByteTokenizer().encode(context + continuation, bos=True))
        with torch.no_grad():
            scores = model(ids[None]).logits[0, len(start) - 1 : -1].log_softmax(-1)
        target = ids[len(start) :]
        assert score == pytest.approx(float(scores.gather(1, target[:, None]).sum()), abs=1e-3)
        assert greedy == bool((scores.argmax(-1) == target).all())

    (rolling,) = judge.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (TEXT[:30],), 0)], disable_tqdm=True
    )
    text = ByteTokenizer().encode(TEXT[:30], bos=True)
    ids = torch.tensor([ByteTokenizer.bos_id, *text])  # lm-eval puts a mark before what the tokenizer gives
    with torch.no_grad():
        scores = model(ids[None]).logits[0, :-1].log_softmax(-1)
    assert rolling == pytest.approx(float(scores.gather(1, ids[1:, None]).sum()), abs=1e-2)

    (written,) = judge.generate_until(
        [Instance("generate_until", {}, ("the cat", {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}), 0)],
        disable_tqdm=True,
    )
    wrapped = MnemonistForCausalLM.from_language_model(model)
    start = torch.from_numpy(ByteTokenizer().encode("the cat", bos=True))[None]
    made = wrapped.generate(start, max_new_tokens=8, do_sample=False)[0, start.shape[1] :]
    assert written == ByteTokenizer().decode(made.tolist()).split("\n\n")[0]


# --- bfloat16


def test_in_bfloat16_memories_stay_in_float32(folder, tmp_path):
    exact = MnemonistForCausalLM.from_pretrained(folder).eval()
    model = MnemonistForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    exactly = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert exactly == {name for name, _ in model.named_parameters() if "initial" in name}, "where memories begin"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}
    model.save_pretrained(tmp_path / "half")
    assert LanguageModel.load(tmp_path / "half").fingerprint() == model.model.fingerprint()
    ids = torch.from_numpy(ByteTokenizer().encode(TEXT, bos=True))[None]
    with torch.no_grad():
        read = model(ids)
        expected = exact(ids).logits[:, :16]  # later ones show what memories of random weights make of the rounding
    assert read.logits.dtype == torch.bfloat16
    assert (read.logits[:, :16].float() - expected).square().mean() < 0.03 * expected.square().mean()
    mag, mac = read.past_key_values.state.blocks
    for memory in (mag.memory.memory, mac.context.memory.memory):
        assert {weight.dtype for weight in (*memory.weights, *memory.momentum)} == {torch.float32}
    made = model.generate(ids[:, :20], max_new_tokens=5, do_sample=False)
    taught = model(made).logits[0, 19:-1].argmax(-1)
    assert (made[0, 20:] == taught).sum() >= 4  # a tie may fall either way


# --- packed documents, as transformers packs them


@pytest.mark.parametrize("blocks", [("mag", "lmm"), ("mac", "attention")], ids="-".join)
def test_documents_flattened_into_a_row_are_learned_from_as_if_each_were_alone(blocks):
    from transformers import DataCollatorWithFlattening

    model = bytes_model(blocks=blocks).train()
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in (9, 1, 14, 6)]
    packed = DataCollatorWithFlattening()([{"input_ids": ids} for ids in documents])
    model(**packed).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    whole = 0.0
    for ids in documents:
        if len(ids) > 1:
            row = torch.tensor([ids])
            whole = whole + model(input_ids=row, labels=row).loss * (len(ids) - 1)
    (whole / sum(len(ids) - 1 for ids in documents)).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_positions_that_say_nothing_new_change_nothing():
    model = bytes_model(blocks=("mag",)).eval()
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # padding before the row: its places are counted from its first token
    counted = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        for given in ({}, {"attention_mask": mask}):
            assert torch.equal(model(ids, position_ids=counted, **given).logits, model(ids, **given).logits) == bool(
                given
            )
        first = model(ids[:, :5], use_cache=True, position_ids=torch.arange(5)[None].expand(2, -1))
        rest = model(
            ids[:, 5:], past_key_values=first.past_key_values, position_ids=torch.arange(7)[None].expand(2, -1)
        )
        torch.testing.assert_close(rest.logits, model(ids).logits[:, 5:], atol=1e-5, rtol=1e-4)
