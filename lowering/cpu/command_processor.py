"""`moeloom_run`: every thread of the pool runs the commands, sharing tiles and meeting after each (docs/program.md).

Spinning keeps the hand-over between kernels below a microsecond; after SPINS turns a thread yields its time slice, so
that more threads than cores still make progress.
"""

SPINS = 4096

MLIR = f"""
llvm.func @sched_yield() -> i32
llvm.func @moeloom_run(%commands: !llvm.ptr, %count: i64, %barrier: !llvm.ptr, %thread: i64) {{
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %spins = llvm.mlir.constant({SPINS} : i64) : i64
  %threads = llvm.load %barrier : !llvm.ptr -> i64
  %last = llvm.sub %threads, %one : i64
  %arrived = llvm.getelementptr %barrier[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %generation = llvm.getelementptr %barrier[16] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.br ^command(%zero : i64)
^command(%i: i64):
  %more = llvm.icmp "slt" %i, %count : i64
  llvm.cond_br %more, ^start, ^done
^start:
  %command = llvm.getelementptr %commands[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.struct<(ptr, ptr, i64, i64)>
  %args_at = llvm.getelementptr %command[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %tiles_at = llvm.getelementptr %command[16] : (!llvm.ptr) -> !llvm.ptr, i8
  %next = llvm.getelementptr %command[24] : (!llvm.ptr) -> !llvm.ptr, i8
  %kernel = llvm.load %command : !llvm.ptr -> !llvm.ptr
  %args = llvm.load %args_at : !llvm.ptr -> !llvm.ptr
  %tiles = llvm.load %tiles_at : !llvm.ptr -> i64
  llvm.br ^take
^take:
  %tile = llvm.atomicrmw add %next, %one monotonic : !llvm.ptr, i64
  %live = llvm.icmp "slt" %tile, %tiles : i64
  llvm.cond_br %live, ^run, ^meet
^run:
  llvm.call %kernel(%args, %tile) : !llvm.ptr, (!llvm.ptr, i64) -> ()
  llvm.br ^take
^meet:
  %now = llvm.load %generation atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %before = llvm.atomicrmw add %arrived, %one acq_rel : !llvm.ptr, i64
  %is_last = llvm.icmp "eq" %before, %last : i64
  llvm.cond_br %is_last, ^release, ^spin(%zero : i64)
^release:
  llvm.store %zero, %next : i64, !llvm.ptr
  llvm.store %zero, %arrived : i64, !llvm.ptr
  %following = llvm.add %now, %one : i64
  llvm.store %following, %generation atomic release {{alignment = 8 : i64}} : i64, !llvm.ptr
  llvm.br ^advance
^spin(%turns: i64):
  %seen = llvm.load %generation atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %released = llvm.icmp "ne" %seen, %now : i64
  llvm.cond_br %released, ^advance, ^wait
^wait:
  %turn = llvm.add %turns, %one : i64
  %patient = llvm.icmp "slt" %turn, %spins : i64
  llvm.cond_br %patient, ^pause, ^yield
^pause:
  llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
  llvm.br ^spin(%turn : i64)
^yield:
  %ignored = llvm.call @sched_yield() : () -> i32
  llvm.br ^spin(%zero : i64)
^advance:
  %following_command = llvm.add %i, %one : i64
  llvm.br ^command(%following_command : i64)
^done:
  llvm.return
}}
"""
