// The output of one run is the input of the next.
// RUN: moeloom-opt %s | moeloom-opt - | filecheck %s --check-prefix=SAME
// RUN: moeloom-opt %s -o %t.mlir && filecheck %s --check-prefix=SAME --input-file %t.mlir
// SAME-LABEL: func.func @quantise
// SAME:         "moe.quant"
// SAME:         arith.addi
// SAME:       torch.aten.relu

// Upstream passes by name, alone, nested, with options, and the whole wrapped as MLIR prints it.
// RUN: moeloom-opt %s -p canonicalize | filecheck %s --check-prefix=CANON
// RUN: moeloom-opt %s -p "func.func(canonicalize{max-iterations=3 top-down=true},cse)" | filecheck %s --check-prefix=CANON
// RUN: moeloom-opt %s -p "builtin.module(moe-fuse-quant-sort, canonicalize , cse)" | filecheck %s --check-prefix=CANON
// CANON-LABEL: func.func @quantise
// CANON-NOT:     arith.addi
// CANON:         return

// Remarks go to stderr, with the file's name; the module to stdout.
// RUN: moeloom-opt %s -p moe-fuse-quant-sort 2>&1 >%t.out | filecheck %s --check-prefix=REMARK
// RUN: filecheck %s --check-prefix=FUSED --input-file %t.out
// RUN: moeloom-opt -p moe-fuse-quant-sort < %s 2>&1 | filecheck %s --check-prefix=STDIN
// REMARK: {{.*}}opt.mlir:43:{{[0-9]+}}: remark: fused: stage 1 of @quantise: quant writes each scale to its sorted place
// STDIN: <stdin>:{{[0-9]+}}:{{[0-9]+}}: remark: fused: stage 1 of @quantise
// FUSED: "moe.quant_sort"

// The fused op has the places of both.
// RUN: moeloom-opt %s -p moe-fuse-quant-sort --mlir-print-debuginfo | filecheck %s --check-prefix=LOCATION
// LOCATION: "moe.quant_sort"{{.*}} loc([[BOTH:#.*]])
// LOCATION: [[FIRST:#.*]] = loc("{{.*}}opt.mlir":{{[0-9]+}}:12)
// LOCATION: [[SECOND:#.*]] = loc("{{.*}}opt.mlir":{{[0-9]+}}:9)
// LOCATION: [[BOTH]] = loc(fused[

// RUN: moeloom-opt %s -p "moe-fuse-quant-sort,cse" --print-ir-before-all --print-ir-after-all --timing 2>&1 | filecheck %s --check-prefix=DUMP
// DUMP: IR Dump Before FuseQuantSort: moe-fuse-quant-sort
// DUMP: IR Dump After FuseQuantSort: moe-fuse-quant-sort
// DUMP: IR Dump After CSE
// DUMP: Execution time report
// DUMP: FuseQuantSort

func.func @quantise(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %a = arith.constant 1 : i32
  %dead = arith.addi %a, %a : i32
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

func.func @torch_parses(%x: !torch.vtensor<[?,64],bf16>) -> !torch.vtensor<[?,64],bf16> {
  %0 = torch.aten.relu %x : !torch.vtensor<[?,64],bf16> -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}
