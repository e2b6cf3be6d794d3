"""The report turns saved benchmarks into tables, and leaves the rest of the page alone."""

import dataclasses
import json

import pytest
import report

PAGE = """# Speed

Mine.

<!-- table: {name} -->
old
<!-- end of table -->

The rest.
"""


def result(case, needle, group="kernels", torch=None, numpy=None, **changes):
    seconds = {"needle": needle} | {
        side: time for side, time in (("torch", torch), ("numpy", numpy)) if time
    }
    settings = {
        "group": group,
        "case": case,
        "threads": 2,
        "isa": "avx2",
        "flops": 2_000_000,
        "bytes": 1_000_000,
        "peak_gflops": 100.0,
        "peak_gbytes": 10.0,
        "seconds": seconds,
        "versions": {"torch": "2.13.0"} if torch else {},
    }
    return settings | changes


def save(path, *results):
    saved = {
        "benchmarks": [{"name": r.get("case", "old"), "extra_info": r} for r in results],
        "machine_info": {"cpu": {"brand_raw": "A processor", "count": 2}, "node": "secret-host"},
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2030-01-02T03:04:05",
    }
    path.write_text(json.dumps(saved))
    return path


def filled(tmp_path, name, *results):
    page = PAGE.format(name=name)
    return report.fill_page(page, [report.read(save(tmp_path / "saved.json", *results))])


def rows(page):
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines[2:]}


def test_ratios_and_percent_of_the_roofline(tmp_path):
    page = filled(tmp_path, "kernels", result("exp-large", 2e-4, torch=3e-4, numpy=1e-3))
    # 1 MB at 10 GB/s takes 100 us, 2 Mflop at 100 GFLOP/s only 20
    expected = ["200 us", "1.00 ms", "300 us", "5.00", "1.50", "50"]
    assert rows(page)["exp-large"] == expected
    assert page.startswith("# Speed\n\nMine.\n")
    assert page.endswith("\n\nThe rest.\n")
    assert "old" not in page


def test_float64_has_half_the_peak(tmp_path):
    products = [result(f"matmul-8{kind}", 1e-4, bytes=8) for kind in ("", "-float64")]
    found = rows(filled(tmp_path, "products", *products))
    assert [row[-1] for row in found.values()] == ["20", "40"]
    assert found["8"][0] == "20", "GFLOP/s"


def test_the_highest_peak_of_a_thread_count_counts(tmp_path):
    cases = [result("exp-a", 2e-4), result("exp-b", 2e-4, peak_gbytes=20.0)]
    cases.append(result("exp-c", 2e-4, threads=1, peak_gbytes=5.0))
    found = rows(filled(tmp_path, "kernels", *cases))
    assert [row[-1] for row in found.values()] == ["25", "25", "100"]


def test_without_torch_its_column_is_empty(tmp_path):
    assert rows(filled(tmp_path, "steps", result("rnn", 0.1, group="steps")))["rnn"][1:3] == [
        "-",
        "-",
    ]
    assert "needle alone" in filled(tmp_path, "machine", result("rnn", 0.1))


def test_floor_of_a_step(tmp_path):
    measured = result("rnn", 0.1, group="steps", flops=5 * 10**9, product_gflops=100.0)
    found = rows(filled(tmp_path, "steps", measured, result("lstm", 0.1, group="steps")))
    assert found["rnn"][3:5] == ["50.00", "2.00"]
    assert found["lstm"][3:5] == ["-", "-"]


def test_families_are_geometric_means(tmp_path):
    cases = [result("conv-a", 1e-3, torch=4e-3), result("conv-b", 1e-3, torch=1e-3)]
    found = rows(filled(tmp_path, "families", *cases, result("conv-tiny", 1e-6)))
    assert found["conv, larger"] == ["2", "-", "2.00", "conv-b 1.00"]
    assert found["conv, tiny"] == ["1", "-", "-", "-"]


@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("sum-rows-tiny", "reduce"),
        ("sum_squares-tiny", "optimize"),
        ("maximum-large", "elementwise"),
        ("linear_weight_grad-ptb", "matmul"),
    ],
)
def test_family(case, family):
    assert report.family(case) == family


def test_thread_and_batch_scaling(tmp_path):
    cases = [
        result("exp", 4e-3, "kernel-threads", torch=3e-3, threads=1),
        result("exp", 2e-3, "kernel-threads", torch=2e-3, threads=2),
    ]
    assert rows(filled(tmp_path, "threads", *cases))["exp"] == [
        "4.00 ms",
        "2.00 ms",
        "2.00",
        "1.50",
    ]
    cases = [result("resnet9-batch-64", 64e-6, "batches", torch=128e-6, samples=64)]
    assert rows(filled(tmp_path, "batches", *cases))["resnet9"] == ["64", "1.0", "2.0", "2.00"]


def test_the_machine_is_described_without_its_name(tmp_path):
    page = filled(tmp_path, "machine", result("exp", 1e-3, torch=1e-3))
    assert "A processor, 2 cores; avx2, 2 threads" in page
    assert "100 GFLOP/s, 10.0 GB/s" in page
    assert "PyTorch 2.13.0; 2030-01-02, commit 0123456789." in page
    assert "secret" not in page


def test_tables_that_were_not_measured_stay(tmp_path):
    page = filled(tmp_path, "steps", result("exp", 1e-3))
    assert page == PAGE.format(name="steps")
    again = filled(tmp_path, "kernels", result("exp", 1e-3))
    saved = report.read(save(tmp_path / "saved.json", result("exp", 1e-3)))
    assert report.fill_page(again, [saved]) == again


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown table: got 'speed': need one of machine, steps"):
        filled(tmp_path, "speed", result("exp", 1e-3))
    with pytest.raises(ValueError, match="got 0 ends: need one for each table"):
        report.fill_page("<!-- table: steps -->", [])
    with pytest.raises(ValueError, match=r"saved.json: got old: need a compared case"):
        report.read(save(tmp_path / "saved.json", {"images/s": 3}))
    with pytest.raises(ValueError, match=r"saved.json: got exp: need a case that was timed"):
        report.read(save(tmp_path / "saved.json", result("exp", 0)))
    with pytest.raises(ValueError, match=r"saved.json: no benchmarks in it"):
        report.read(save(tmp_path / "saved.json"))
    with pytest.raises(SystemExit):
        report.main(["--page", str(tmp_path / "absent"), "--nonsense"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": 1}',
        '{"benchmarks": [{"name": "exp"}]}',
        '{"benchmarks": [{"name": "exp", "extra_info": {"seconds": {"needle": 1}, "new": 2}}]}',
        '{"benchmarks": [], "machine_info": {}, "commit_info": {}}',
    ],
)
def test_files_of_another_kind(tmp_path, text, capsys):
    path, page = tmp_path / "saved.json", tmp_path / "page.md"
    path.write_text(text)
    page.write_text(PAGE.format(name="kernels"))
    with pytest.raises(ValueError, match=r"saved\.json: .*: need a file that bench:kernels, "):
        report.read(path)
    with pytest.raises(SystemExit):
        report.main([str(path), "--page", str(page)])
    assert "saved.json" in capsys.readouterr().err
    assert page.read_text() == PAGE.format(name="kernels")


def test_figures_of_two_machines_or_commits(tmp_path):
    one = report.read(save(tmp_path / "saved.json", result("exp", 1e-3)))
    later = dataclasses.replace(one, commit="fedcba9876", date="2030-02-03")
    both = "2030-01-02, commit 0123456789; 2030-02-03, commit fedcba9876."
    assert report.machine([one, later]).endswith(both)
    assert report.machine([one, one]).endswith("; 2030-01-02, commit 0123456789.")
    with pytest.raises(ValueError, match="figures of A processor, 2 cores and of another: need"):
        report.machine([one, dataclasses.replace(one, machine="another")])


def test_the_page_has_the_tables_that_exist():
    page = (report.ROOT / "docs" / "performance.md").read_text()
    names = {match.group(2) for match in report.MARKED.finditer(page)}
    assert names == {"machine", *report.TABLES}


def test_durations():
    shown = [report.duration(s) for s in (None, 5e-7, 1.5e-5, 0.25, 12.0)]
    assert shown == ["-", "0.50 us", "15.0 us", "250 ms", "12.0 s"]


def test_main_with_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(PAGE.format(name="kernels"))
    saved = save(tmp_path / "saved.json", result("exp-large", 1e-3), result("conv-large", 1e-3))
    report.main([str(saved), "--page", str(page), "--plot", str(plot)])
    assert "exp-large" in page.read_text()
    assert "GFLOP/s" in plot.read_text()
