"""`moeloom_run`: threads share the tiles of a list of commands, one command after the other (docs/program.md).

A command is over when its tiles are, not when every thread has arrived: a thread that the scheduler keeps away costs
its share of the work and nothing else. Counters carry the epoch of their run in the upper half, so that a thread that
comes late finds either work of its own run or another epoch, and leaves. Tiles are taken in runs that shrink towards
the end: neighbouring tiles are neighbours in memory and share what a kernel prepares, and the threads still finish
together.
"""

SPINS = 4096
"""Turns that a thread spins for the last tiles of a command before it gives its time slice away."""
SHARES = 8
"""A run of tiles is this part of what is left for one thread."""

MLIR = f"""
llvm.func @sched_yield() -> i32
llvm.func @moeloom_run(%commands: !llvm.ptr, %count: i64, %threads: i64, %epoch: i64) {{
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %half = llvm.mlir.constant(32 : i64) : i64
  %low = llvm.mlir.constant(4294967295 : i64) : i64
  %spins = llvm.mlir.constant({SPINS} : i64) : i64
  %shares = llvm.mlir.constant({SHARES} : i64) : i64
  %parts = llvm.mul %threads, %shares : i64
  llvm.br ^command(%zero : i64)
^command(%i: i64):
  %more = llvm.icmp "slt" %i, %count : i64
  llvm.cond_br %more, ^start, ^done
^start:
  %command = llvm.getelementptr %commands[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.struct<(ptr, ptr, i64, i64, i64)>
  %args_at = llvm.getelementptr %command[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %tiles_at = llvm.getelementptr %command[16] : (!llvm.ptr) -> !llvm.ptr, i8
  %next = llvm.getelementptr %command[24] : (!llvm.ptr) -> !llvm.ptr, i8
  %finished = llvm.getelementptr %command[32] : (!llvm.ptr) -> !llvm.ptr, i8
  %kernel = llvm.load %command : !llvm.ptr -> !llvm.ptr
  %args = llvm.load %args_at : !llvm.ptr -> !llvm.ptr
  %tiles = llvm.load %tiles_at : !llvm.ptr -> i64
  llvm.br ^take
^take:
  %seen = llvm.load %next atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %seen_epoch = llvm.lshr %seen, %half : i64
  %ours = llvm.icmp "eq" %seen_epoch, %epoch : i64
  llvm.cond_br %ours, ^look, ^done
^look:
  %first = llvm.and %seen, %low : i64
  %left = llvm.sub %tiles, %first : i64
  %any = llvm.icmp "sgt" %left, %zero : i64
  llvm.cond_br %any, ^claim, ^meet(%zero : i64)
^claim:
  %share = llvm.sdiv %left, %parts : i64
  %run = llvm.intr.smax(%share, %one) : (i64, i64) -> i64
  %wanted = llvm.add %seen, %run : i64
  %swap = llvm.cmpxchg %next, %seen, %wanted acq_rel monotonic : !llvm.ptr, i64
  %taken = llvm.extractvalue %swap[1] : !llvm.struct<(i64, i1)>
  %end = llvm.add %first, %run : i64
  llvm.cond_br %taken, ^tiles, ^take
^tiles:
  llvm.call %kernel(%args, %first, %end) : !llvm.ptr, (!llvm.ptr, i64, i64) -> ()
  %before = llvm.atomicrmw add %finished, %run acq_rel : !llvm.ptr, i64
  llvm.br ^take
^meet(%turns: i64):
  %state = llvm.load %finished atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %state_epoch = llvm.lshr %state, %half : i64
  %still_ours = llvm.icmp "eq" %state_epoch, %epoch : i64
  llvm.cond_br %still_ours, ^check, ^done
^check:
  %through = llvm.and %state, %low : i64
  %complete = llvm.icmp "sge" %through, %tiles : i64
  llvm.cond_br %complete, ^advance, ^wait
^wait:
  %turn = llvm.add %turns, %one : i64
  %patient = llvm.icmp "slt" %turn, %spins : i64
  llvm.cond_br %patient, ^pause, ^yield
^pause:
  llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
  llvm.br ^meet(%turn : i64)
^yield:
  %ignored = llvm.call @sched_yield() : () -> i32
  llvm.br ^meet(%zero : i64)
^advance:
  %following_command = llvm.add %i, %one : i64
  llvm.br ^command(%following_command : i64)
^done:
  llvm.return
}}
"""
