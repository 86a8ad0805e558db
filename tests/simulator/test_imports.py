import subprocess
import sys


def test_the_replica_and_its_process_are_imported_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pagetwin.simulator.one_replica, pagetwin.simulator.workloads.trace_files\n"
        "heavy = {'numpy', 'scipy', 'transformers', 'triton'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_simulating_needs_nothing_heavier_than_numpy_and_simpy() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pagetwin.simulator.simulate, pagetwin.simulator.results.report\n"
        "import pagetwin.simulator.cluster.deployment, pagetwin.simulator.results.files\n"
        "heavy = {'scipy', 'transformers', 'triton', 'pandas', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
