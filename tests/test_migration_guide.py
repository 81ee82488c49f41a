"""The guide for users of Betty: it is complete, and what it names exists."""

import ast
import inspect
import pathlib
import re

import flax.training.dynamic_scale
import jax
import jax.numpy as jnp
import optax
import pytest

import mlox
import mlox.flax

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "migrating_from_betty.md").read_text()
PROSE = re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL)

ROWS = {
    "Config": """type unroll_steps first_order retain_graph allow_unused
        gradient_accumulation gradient_clipping precision initial_dynamic_scale
        scale_factor warmup_steps log_step log_local_step darts_alpha darts_multitask
        sama_adam_alpha sama_multitask neumann_iterations neumann_alpha cg_iterations
        cg_alpha""",
    "EngineConfig": """train_iters valid_step logger_type roll_back backend strategy
        early_stopping early_stopping_mode early_stopping_tolerance
        early_stopping_metric""",
    "Arguments of a problem": """name config module optimizer scheduler
        train_data_loader extra_config""",
    "Hooks": """training_step forward configure_train_data_loader configure_module
        configure_optimizer configure_scheduler get_batch on_inner_loop_start
        param_callback grad_callback epoch_callback custom_optimizer_step param_groups
        trainable_parameters meta_trainable_parameters parameters cache_states
        recover_states state_dict load_state_dict""",
    "What a problem offers": """set_module set_optimizer set_scheduler
        set_train_data_loader get_loss backward set_grads zero_grad clip_grad
        get_opt_state_for_param get_opt_param_group_for_param synchronize_params train
        eval count children parents paths leaf name config self.<problem> self.env
        self.logger""",
    "Engine": """Engine run train_step validation set_dependency train eval
        do_validation is_rank_zero cleanup find_paths dfs check_leaf parse_dependency
        self.<problem>""",
    "Env": """Env train_data_loader initialize patch_module patch_data_loader reset
        step""",
}


@pytest.mark.parametrize("section", ROWS)
def test_everything_has_a_row(section):
    text = re.search(rf"^## {section}\n(.*?)(?=^## )", GUIDE, re.DOTALL | re.MULTILINE)
    cells = re.findall(r"^\| (`.*?) \|", text[1], re.MULTILINE)
    found = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    assert found == ROWS[section].split()


# What the names of the guide stand for. Of a problem only attributes are read.
NAMES = {
    "mlox": mlox,
    "Problem": mlox.Problem,
    "Engine": mlox.Engine,
    "engine": mlox.Engine(
        [
            mlox.Problem.create(
                name="x",
                params=jnp.zeros(()),
                tx=optax.sgd(0.1),
                loss_fn=lambda p, b, c: p,
            )
        ]
    ),
    "DynamicScale": flax.training.dynamic_scale.DynamicScale,
    "optax": optax,
    "jax": jax,
    "jnp": jnp,
}
NAMES["problem"] = NAMES["engine"].problems[0]


def spans():
    """Yield the code within sentences and tables, as trees."""
    for span in re.findall(r"`([^`\n]+)`", PROSE):
        try:
            yield ast.parse(span)
        except SyntaxError:
            assert "mlox" not in span, span


def resolved(node):
    """Return what a name or an attribute stands for, None if that is not told."""
    if isinstance(node, ast.Name):
        return NAMES.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value)
        return None if owner is None else getattr(owner, node.attr)
    return None


def test_all_names_exist():
    nodes = [node for span in spans() for node in ast.walk(span)]
    found = [resolved(node) for node in nodes if isinstance(node, ast.Attribute)]
    assert sum(value is not None for value in found) > 60


def test_all_arguments_exist():
    checked = 0
    for span in spans():
        for call in (node for node in ast.walk(span) if isinstance(node, ast.Call)):
            function = resolved(call.func)
            if function is None:
                continue
            known = inspect.signature(function).parameters
            given = {keyword.arg for keyword in call.keywords}
            free = any(p.kind is p.VAR_KEYWORD for p in known.values())
            assert free or given <= set(known), ast.unparse(call)
            checked += len(given)
    assert checked > 30


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)", GUIDE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PROSE):
        page, _, anchor = target.partition("#")
        assert page.startswith("https:") or (ROOT / "docs" / page).exists(), target
        assert page or anchor in anchors, target


def test_the_readme_points_to_it():
    assert "(docs/migrating_from_betty.md)" in (ROOT / "README.md").read_text()
