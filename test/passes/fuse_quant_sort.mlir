// RUN: moeloom-opt %s -p moe-fuse-quant-sort | filecheck %s
// RUN: moeloom-opt %s -p moe-fuse-quant-sort --verify-diagnostics
// Twice is the same as once.
// RUN: moeloom-opt %s -p moe-fuse-quant-sort,moe-fuse-quant-sort | filecheck %s

// CHECK-LABEL: func.func @stage_1
// CHECK-NEXT:    [[BOTH:%.*]]:2 = "moe.quant_sort"(%arg0, %arg1, %arg2) {kind = "per_1x32", layout = "tiled_32x8", scale_mode = "even", stage = 1 : i64, topk = 2 : i64}
// CHECK-NEXT:    return [[BOTH]]#0, [[BOTH]]#1
func.func @stage_1(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{fused: stage 1 of @stage_1: quant writes each scale to its sorted place}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// The mode, the layout and the stage are carried over; fp16 and row_major fuse too.
// CHECK-LABEL: func.func @stage_2_rceil_row_major
// CHECK-NEXT:    "moe.quant_sort"{{.*}}layout = "row_major", scale_mode = "rceil", stage = 2 : i64, topk = 4 : i64
// CHECK-NEXT:    return
func.func @stage_2_rceil_row_major(%x: tensor<?x64xf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "rceil"} : (tensor<?x64xf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{fused: stage 2 of @stage_2_rceil_row_major}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 2 : i64, topk = 4 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>
}

// The ids are made between the quantiser and the sort: the fused op stands at the sort.
// CHECK-LABEL: func.func @ids_after_the_quantiser
// CHECK-NEXT:    [[SORT:%.*]]:4 = "moe.sort_tokens"
// CHECK-NEXT:    "moe.quant_sort"(%arg0, [[SORT]]#0, [[SORT]]#3)
// CHECK-NEXT:    return
func.func @ids_after_the_quantiser(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %sort:4 = "moe.sort_tokens"(%ids, %w) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  // expected-remark@below {{fused: stage 1 of @ids_after_the_quantiser}}
  %ss = "moe.sort_scales"(%s, %sort#0, %sort#3) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// The payload is read before the sort, but the ids exist there: the fused op stands before that reader.
// CHECK-LABEL: func.func @payload_read_before_the_sort
// CHECK-NEXT:    [[BOTH:%.*]]:2 = "moe.quant_sort"
// CHECK-NEXT:    tensor.cast [[BOTH]]#0
// CHECK-NEXT:    return {{.*}}[[BOTH]]#1
func.func @payload_read_before_the_sort(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %early = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
  // expected-remark@below {{fused: stage 1 of @payload_read_before_the_sort}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %early, %ss : tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// A payload reader after the sort does not move the fused op past a reader of the sorted scales.
// CHECK-LABEL: func.func @sorted_scales_read_before_the_payload
// CHECK-NEXT:    [[BOTH:%.*]]:2 = "moe.quant_sort"
// CHECK-NEXT:    tensor.cast [[BOTH]]#1
// CHECK-NEXT:    tensor.cast [[BOTH]]#0
func.func @sorted_scales_read_before_the_payload(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<4x64xf4E2M1FN>, tensor<64x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{fused: stage 1 of @sorted_scales_read_before_the_payload}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  %first = tensor.cast %ss : tensor<?x8xf8E8M0FNU> to tensor<64x8xf8E8M0FNU>
  %second = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
  return %second, %first : tensor<4x64xf4E2M1FN>, tensor<64x8xf8E8M0FNU>
}

// Of two early readers the first counts, also when it stands inside the region of another op.
// CHECK-LABEL: func.func @payload_read_inside_a_region
// CHECK-NEXT:    [[BOTH:%.*]]:2 = "moe.quant_sort"
// CHECK-NEXT:    scf.if
// CHECK:           tensor.cast [[BOTH]]#0
// CHECK:         tensor.cast [[BOTH]]#0
func.func @payload_read_inside_a_region(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>, %c: i1)
    -> (tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %inside = scf.if %c -> tensor<4x64xf4E2M1FN> {
    %a = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
    scf.yield %a : tensor<4x64xf4E2M1FN>
  } else {
    %b = tensor.empty() : tensor<4x64xf4E2M1FN>
    scf.yield %b : tensor<4x64xf4E2M1FN>
  }
  %late = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
  // expected-remark@below {{fused: stage 1 of @payload_read_inside_a_region}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %late, %ss : tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @payload_read_before_the_ids_exist
// CHECK:         "moe.quant"
// CHECK-NOT:     "moe.quant_sort"
// CHECK:         "moe.sort_scales"
func.func @payload_read_before_the_ids_exist(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>)
    -> (tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %early = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
  %sort:4 = "moe.sort_tokens"(%ids, %w) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  // expected-remark@below {{refused: stage 1 of @payload_read_before_the_ids_exist: payload is read before the sorted ids exist (by tensor.cast)}}
  %ss = "moe.sort_scales"(%s, %sort#0, %sort#3) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %early, %ss : tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// The ids exist before the early reader, the live count does not.
// CHECK-LABEL: func.func @payload_read_before_the_count_exists
// CHECK:         "moe.quant"
// CHECK-NOT:     "moe.quant_sort"
func.func @payload_read_before_the_count_exists(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>)
    -> (tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %early = tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>
  %nv = arith.constant dense<[64, 3]> : tensor<2xi32>
  // expected-remark@below {{payload is read before the sorted ids exist (by tensor.cast)}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %early, %ss : tensor<4x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @leaves_prequantised_input
// CHECK-NEXT:    "moe.sort_scales"(%arg0, %arg1, %arg2)
func.func @leaves_prequantised_input(%s: tensor<?x2xf8E8M0FNU>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) -> tensor<?x8xf8E8M0FNU> {
  // expected-remark@below {{refused: stage 1 of @leaves_prequantised_input: scales come from elsewhere (pre-quantised input)}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %ss : tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @leaves_scales_that_another_op_made
// CHECK:         "moe.quant"
// CHECK:         "moe.sort_scales"
func.func @leaves_scales_that_another_op_made(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) -> tensor<?x8xf8E8M0FNU> {
  // expected-remark@below {{refused: quant of @leaves_scales_that_another_op_made: nothing sorts its scales}}
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %cast = tensor.cast %s : tensor<?x2xf8E8M0FNU> to tensor<4x2xf8E8M0FNU>
  // expected-remark@below {{refused: stage 2 of @leaves_scales_that_another_op_made: scales come from elsewhere (tensor.cast)}}
  %ss = "moe.sort_scales"(%cast, %ids, %nv) {stage = 2 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<4x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %ss : tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @leaves_scales_with_another_reader
// CHECK:         [[Q:%.*]]:2 = "moe.quant"
// CHECK-NEXT:    "moe.sort_scales"([[Q]]#1
// CHECK-NEXT:    return [[Q]]#1
func.func @leaves_scales_with_another_reader(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x2xf8E8M0FNU>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{refused: stage 1 of @leaves_scales_with_another_reader: scales have another reader (func.return)}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %s, %ss : tensor<?x2xf8E8M0FNU>, tensor<?x8xf8E8M0FNU>
}

// Two sorts of the same scales: neither may take the quantiser from the other.
// CHECK-LABEL: func.func @leaves_scales_sorted_twice
// CHECK:         [[Q:%.*]]:2 = "moe.quant"
// CHECK-NEXT:    "moe.sort_scales"([[Q]]#1
// CHECK-NEXT:    "moe.sort_scales"([[Q]]#1
func.func @leaves_scales_sorted_twice(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %others: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x8xf8E8M0FNU>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{refused: stage 1 of @leaves_scales_sorted_twice: scales have another reader (moe.sort_scales)}}
  %a = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  // expected-remark@below {{refused: stage 1 of @leaves_scales_sorted_twice: scales have another reader (moe.sort_scales)}}
  %b = "moe.sort_scales"(%s, %others, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %a, %b : tensor<?x8xf8E8M0FNU>, tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @leaves_a_sort_inside_a_region
// CHECK:         "moe.quant"
// CHECK:         scf.if
// CHECK:           "moe.sort_scales"
func.func @leaves_a_sort_inside_a_region(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>, %c: i1)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %n = arith.constant 32 : index
  %ss = scf.if %c -> tensor<?x8xf8E8M0FNU> {
    // expected-remark@below {{refused: stage 1 of @leaves_a_sort_inside_a_region: quant and sort_scales are in different blocks}}
    %a = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
    scf.yield %a : tensor<?x8xf8E8M0FNU>
  } else {
    %b = tensor.empty(%n) : tensor<?x8xf8E8M0FNU>
    scf.yield %b : tensor<?x8xf8E8M0FNU>
  }
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @leaves_a_sort_in_another_block
// CHECK:         "moe.quant"
// CHECK:         "moe.sort_scales"
func.func @leaves_a_sort_in_another_block(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) -> tensor<?x8xf8E8M0FNU> {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  cf.br ^next
^next:
  // expected-remark@below {{refused: stage 1 of @leaves_a_sort_in_another_block: quant and sort_scales are in different blocks}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %ss : tensor<?x8xf8E8M0FNU>
}

// Both in one region, ids from outside, payload read in a later block: fused.
// CHECK-LABEL: func.func @fuses_inside_a_region
// CHECK:         scf.if
// CHECK-NEXT:      [[BOTH:%.*]]:2 = "moe.quant_sort"
// CHECK-NEXT:      scf.yield [[BOTH]]#0, [[BOTH]]#1
func.func @fuses_inside_a_region(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>, %c: i1,
    %p: tensor<?x64xf4E2M1FN>, %o: tensor<?x8xf8E8M0FNU>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %r:2 = scf.if %c -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
    %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
    // expected-remark@below {{fused: stage 1 of @fuses_inside_a_region}}
    %a = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
    scf.yield %q, %a : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
  } else {
    scf.yield %p, %o : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
  }
  return %r#0, %r#1 : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// CHECK-LABEL: func.func @payload_read_in_a_later_block
// CHECK-NEXT:    [[BOTH:%.*]]:2 = "moe.quant_sort"
// CHECK-NEXT:    cf.br
func.func @payload_read_in_a_later_block(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // expected-remark@below {{fused: stage 1 of @payload_read_in_a_later_block}}
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  cf.br ^next
^next:
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// Other quantisations survive unchanged.
// CHECK-LABEL: func.func @leaves_other_quantisations
// CHECK-NEXT:    "moe.quant"(%arg0) {kind = "per_token"
// CHECK-NEXT:    "moe.quant"(%arg0) {kind = "per_tensor"
// CHECK-NEXT:    [[Q:%.*]]:2 = "moe.quant"(%arg0) {kind = "per_1x128"
// CHECK-NEXT:    "moe.sort_scales"([[Q]]#1
// CHECK-NEXT:    "moe.sort_scales"(%arg3
func.func @leaves_other_quantisations(%x: tensor<?x256xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>, %fs: tensor<?x2xf32>) {
  // expected-remark@below {{refused: quant of @leaves_other_quantisations: kind is per_token; only per_1x32 fuses}}
  %a:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x1xf32>)
  // expected-remark@below {{refused: quant of @leaves_other_quantisations: kind is per_tensor; only per_1x32 fuses}}
  %b:2 = "moe.quant"(%x) {kind = "per_tensor", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<1xf32>)
  %c:2 = "moe.quant"(%x) {kind = "per_1x128", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x2xf32>)
  // expected-remark@below {{refused: stage 1 of @leaves_other_quantisations: kind is per_1x128; only per_1x32 fuses}}
  %d = "moe.sort_scales"(%c#1, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf32>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf32>
  // expected-remark@below {{refused: stage 2 of @leaves_other_quantisations: scales are f32; only the f8E8M0FNU scales of per_1x32 fuse}}
  %e = "moe.sort_scales"(%fs, %ids, %nv) {stage = 2 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf32>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf32>
  return
}
