// K and V of the tokens in flight go to the chunk scratch: [token][kv_head].

fn kv_row(kv_head: u32, token: u32, position: u32) -> u32 {
    return token * KV_HEADS + kv_head;
}
