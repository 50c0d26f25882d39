"""Print which engines are installed: name, version, instruction set, or what to install.

python tools/engines.py
"""

from isobit.engines import ENGINES

for name, kind in ENGINES.items():
    engine = kind()
    print(f"{name:12} {engine.missing() or f'{engine.version()}, {engine.instruction_set()}'}")
