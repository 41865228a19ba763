"""`clean` on Ray and on Slurm: the same bytes as here. Slurm is played by scripts that run what is submitted at once."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zhllama import extras
from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.settings import Slurm

Run = Callable[..., dict[str, bytes]]
# Runs each task of the array, as the script's own first lines ask for, and says what Slurm says.
SBATCH = """#!/bin/bash
number=$(( $(ls "$SCRIPTS" | wc -l) + 1 ))
script="$SCRIPTS/$(printf %02d $number)"
echo "# sbatch ${@:1:$#-1}" > "$script"
cat "${@: -1}" >> "$script"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 $last); do
  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" > "$script.out" 2>&1 || true
done
rm -f "$script.out"
echo "Submitted batch job $number"
"""
SRUN = '#!/bin/bash\nwhile [[ $1 != launch_pickled_pipeline ]]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho here\n"


def written(output: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    return {**files, "run.json": json.dumps(json.loads(files["run.json"])["result"]).encode()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, chinese_text: str) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "in"
    folder.mkdir()
    lines = [line for line in chinese_text.split("\n") if len(line) > 30][:40]
    for part in range(2):
        (folder / f"{part}.txt").write_text("\n\n".join(lines[part * 12 : part * 12 + 20]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path) -> Run:
    def run(output: Path, **settings: object) -> dict[str, bytes]:
        fixed = {"corpus": str(corpus), "shard_megabytes": 0.001, "near_duplicates": False, "boilerplate": 9}
        settings = {**fixed, "workers": 1, **settings}
        clean(CleanConfig(output=str(output), **settings))  # type: ignore[arg-type]
        return written(output) if "result" in json.loads((output / "run.json").read_text()) else {}

    return run


@pytest.fixture(scope="module")
def expected(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that what is given to sbatch is left in, after it has been run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scripts").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    put_squeue(tmp_path, "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SCRIPTS", str(tmp_path / "scripts"))
    return tmp_path / "scripts"


def put_squeue(tmp_path: Path, line: str) -> None:
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/bash\necho '{line}'\n", encoding="utf-8")
    (tmp_path / "bin" / "squeue").chmod(0o755)


SLURM = {"executor": "slurm", "slurm": Slurm("cpu", "02:00:00", 8), "workers": 3}


@pytest.mark.slow
def test_slurm_gives_the_same_bytes_by_a_chain_of_jobs(
    tmp_path: Path,
    run: Run,
    expected: dict[str, bytes],
    scripts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tmp_path / "out", **SLURM)
    assert written(tmp_path / "out") == expected
    texts = [file.read_text(encoding="utf-8") for file in sorted(scripts.iterdir())]
    names = ["read", "same", "lines", "lines-found", "write", "finish"]
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        for line in ("partition=cpu", "time=02:00:00", "mem-per-cpu=8G", f"job-name=zhllama-{name}"):
            assert f"#SBATCH --{line}\n" in text
        assert "#SBATCH --kill-on-invalid-dep=yes\n" in text
        assert "qos" not in text
        assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in text
        waits = f"--dependency=afterok:{number}\n" if number else ""
        assert text.split("\n", 1)[0] + "\n" == f"# sbatch --export=ALL,RUN_OFFSET=0 {waits}".rstrip() + "\n"
    assert "#SBATCH --array=0-1%3\n" in texts[0]
    assert "#SBATCH --array=0-0%3\n" in texts[1]
    assert "jobs 1, 2, 3, 4, 5, 6 submitted" in capsys.readouterr().out


@pytest.mark.slow
def test_only_what_is_left_is_submitted_again(
    tmp_path: Path, run: Run, expected: dict[str, bytes], scripts: Path
) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN.replace("exec", "[[ $* != *write* && $* != *finish* ]] && exec"), encoding="utf-8")
    assert run(tmp_path / "out", **SLURM) == {}
    put_squeue(tmp_path, "7 cpu zhllama-write")
    with pytest.raises(UserError, match="jobs 1,2,3,4,5,6 of this run still wait or run"):
        run(tmp_path / "out", **SLURM)
    put_squeue(tmp_path, "")
    srun.write_text(SRUN, encoding="utf-8")
    for file in scripts.iterdir():
        file.unlink()
    run(tmp_path / "out", **SLURM)
    assert written(tmp_path / "out") == expected
    assert len(list(scripts.iterdir())) == 2


def test_a_job_that_slurm_refuses_is_one_line(tmp_path: Path, run: Run, scripts: Path) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"sbatch refused a job.*--slurm.partition"):
        run(tmp_path / "out", **SLURM)


def test_slurm_without_partition_or_sbatch_is_refused(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"give --slurm.partition too"):
        run(tmp_path / "out", executor="slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        run(tmp_path / "out", **SLURM)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "ray")
    monkeypatch.setattr(extras, "packages_of", lambda extra: [extra])
    with pytest.raises(
        UserError, match=r"--executor ray needs the extra \[ray\]: pip install 'zhllama\[ray\]'"
    ):
        run(tmp_path / "out", executor="ray")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install zhllama[ray])")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_ray_gives_the_same_bytes(tmp_path: Path, run: Run, expected: dict[str, bytes]) -> None:
    assert run(tmp_path / "out", executor="ray", workers=0) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_a_mistake_on_a_ray_node_is_one_line(tmp_path: Path, run: Run, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"0.txt: not UTF-16") as caught:
        run(tmp_path / "out", executor="ray", encoding="utf-16")
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_a_task_that_ray_loses_again_and_again_is_one_line(tmp_path: Path) -> None:
    from zhllama.corpus.cluster import RayExecutor

    def die(data: object, rank: int, world_size: int) -> None:
        os.kill(os.getpid(), 9)

    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"the Ray cluster lost a task four times \(WorkerCrashedError\)"):
        RayExecutor([die], 1, 1, str(tmp_path / "logs" / "read")).run()


@pytest.mark.slow
@pytest.mark.usefixtures("two_nodes")
def test_an_output_that_a_ray_node_does_not_see_is_named(tmp_path: Path) -> None:
    from zhllama.corpus.cluster import RayExecutor

    with pytest.raises(UserError, match=r"--output .*/away: the machine .* does not see it; choose a folder"):
        RayExecutor([], 1, 1, str(tmp_path / "away" / "logs" / "read")).run()
